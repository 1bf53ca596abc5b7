"""The TLS side of a `ClientConfig`: certificate authorities and our own certificate.

`ssl` takes certificate chains from files only. Keys that came inline are handed over through an
anonymous memory file, so that a private key is never written to a disk.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from podwire.cluster.kube.config import ClientConfig, Pem
from podwire.errors import InputError


def client_context(config: ClientConfig) -> ssl.SSLContext:
    """The context for connections to `config.server`.

    Raises `InputError` for a CA, certificate or key that OpenSSL does not take.
    """
    context = ssl.create_default_context() if config.ca is None else _context_of_ca(config.ca)
    if config.insecure_skip_tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if config.client_certificate is not None and config.client_key is not None:
        load_client_certificate(context, config.client_certificate, config.client_key)
    return context


def load_client_certificate(context: ssl.SSLContext, certificate: Pem, key: Pem) -> None:
    """Give `context` our certificate, for the connections that it opens from now on."""
    with ExitStack() as stack:
        certificate_path = stack.enter_context(_as_file(certificate))
        key_path = stack.enter_context(_as_file(key))
        try:
            context.load_cert_chain(certificate_path, key_path, password=_refuse_password)
        except (ssl.SSLError, OSError) as error:
            raise InputError(
                f"OpenSSL does not take the certificate and key {_name(certificate)}: {error}",
                field="client-certificate",
            ) from None


def _context_of_ca(ca: Pem) -> ssl.SSLContext:
    try:
        pem = ca.read_bytes() if isinstance(ca, Path) else ca
        return ssl.create_default_context(cadata=pem.decode("ascii"))
    except (ssl.SSLError, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"OpenSSL does not take the CA {_name(ca)}: {error}", field="certificate-authority"
        ) from None


@contextmanager
def _as_file(pem: Pem) -> Iterator[str]:
    if isinstance(pem, Path):
        yield str(pem)
        return
    descriptor = os.memfd_create("podwire-pem", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _refuse_password() -> str:
    """Stands in for OpenSSL's own prompt, which would read from the terminal."""
    raise InputError("the key is encrypted, and there is no way to ask", field="client-key")


def _name(pem: Pem) -> str:
    return f"in {pem}" if isinstance(pem, Path) else "given inline"
