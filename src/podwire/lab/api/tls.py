"""TLS for the loopback port.

kubectl sends a token only over TLS, so a lab that is to serve kubectl has a certificate of its own:
self-signed, for 127.0.0.1 and localhost, its own authority; the kubeconfig names it as such. It is
made with `openssl`, as Python's standard library cannot make one.
"""

from __future__ import annotations

import os
import ssl
import subprocess
from pathlib import Path

from podwire.errors import LabError

CERTIFICATE, KEY = "tls.crt", "tls.key"
_DAYS = "3650"


def server_context(directory: Path) -> ssl.SSLContext:
    """A context with the certificate in `directory` (`tls.crt`, `tls.key`), made if absent.

    Raises `LabError` when it can't be made or isn't valid.
    """
    certificate, key = directory / CERTIFICATE, directory / KEY
    if not (certificate.exists() and key.exists()):
        _make(certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise LabError(
            f"OpenSSL does not take {certificate} with {key}: {error}", remedy="delete both files"
        ) from None
    return context


def _make(certificate: Path, key: Path) -> None:
    command = [
        *("openssl", "req", "-x509", "-nodes", "-days", _DAYS, "-subj", "/CN=podwire-lab"),
        *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        *("-addext", "extendedKeyUsage=serverAuth"),
        *("-keyout", str(key), "-out", str(certificate)),
    ]
    try:
        # The key must never have been readable to others, not even while it is written.
        os.close(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise LabError(
            f"cannot make a certificate: {error}",
            remedy="install openssl: apt-get install openssl",
        ) from None
    except subprocess.CalledProcessError as error:
        raise LabError(f"openssl made no certificate: {error.stderr.strip()}") from None
