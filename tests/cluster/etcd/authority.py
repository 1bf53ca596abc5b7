"""A certificate authority for the tests, made with openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """A certificate authority in a directory; what it certifies is at `address`."""

    def __init__(self, directory: Path, address: str = "127.0.0.1") -> None:
        directory.mkdir()
        self._directory = directory
        self._address = address
        self.ca = directory / "ca.crt"
        self._openssl(
            *("req", "-x509", *_EC, "-keyout", "ca.key", "-out", "ca.crt"),
            *("-days", "30", "-subj", "/CN=ca"),
        )

    def issue(self, name: str, usage: str, subject: str = "/CN=etcd") -> tuple[Path, Path]:
        """A certificate and its key, good for `usage`, such as `clientAuth`."""
        self._openssl("req", *_EC, "-keyout", f"{name}.key", "-out", "csr", "-subj", subject)
        extensions = f"subjectAltName=IP:{self._address}\nextendedKeyUsage={usage}\n"
        (self._directory / "ext").write_text(extensions)
        self._openssl(
            *("x509", "-req", "-in", "csr", "-CA", "ca.crt", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-out", f"{name}.crt", "-days", "30", "-extfile", "ext"),
        )
        return self._directory / f"{name}.crt", self._directory / f"{name}.key"

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self._directory, check=True, capture_output=True)
