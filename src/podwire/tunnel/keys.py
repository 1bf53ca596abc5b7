"""A node's own key for the encrypted tunnel: made once, kept in a file, published in its lease.

The file holds 32 bytes of X25519 in base64 and a newline, readable by root alone. The public key
that follows from it is what other nodes know this one by; a new key is a new identity.
"""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from pathlib import Path

from podwire.errors import InputError, PodwireError

_SIZE = 32
_OTHERS = 0o077


def public_key(private: bytes) -> bytes:
    """The public key, 32 bytes, of a private one."""
    # Some 6 MB, of which only agents of encrypted tunnels have any use.
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def encode_key(key: bytes) -> str:
    """A key as text: base64, 44 characters."""
    return base64.b64encode(key).decode()


def decode_key(text: str, *, field: str) -> bytes:
    """A key from its text; `field` says where that was found. Raises InputError."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _SIZE:
        raise InputError("not an X25519 key, which is 32 bytes in base64", field=field)
    return key


def load_or_create_key(path: Path) -> bytes:
    """This node's private key, 32 bytes; a new one where there is no such file.

    Of several processes that start at once, one makes the key and all get it; a crash leaves the
    whole file or none. Raises InputError for a file that holds no key or that others may read,
    PodwireError where it can't be read or written.
    """
    try:
        if not path.exists():
            _create(path)
        return _load(path)
    except OSError as error:
        raise PodwireError(
            f"cannot keep the tunnel's key in {path}: {error.strerror or error}",
            remedy="make its directory writable for root, or name another file",
        ) from error


def _load(path: Path) -> bytes:
    with path.open() as file:
        if os.fstat(file.fileno()).st_mode & _OTHERS:
            raise InputError(
                "others than its owner may read this private key",
                field=str(path),
                remedy="remove it, and a new key is made; or `chmod 600` it if nobody has read it",
            )
        try:
            return decode_key(file.read(1024), field=str(path))
        except (InputError, UnicodeDecodeError):
            raise InputError(
                "not an X25519 private key, which is 32 bytes in base64",
                field=str(path),
                remedy="remove it, and a new key is made",
            ) from None


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Any 32 bytes will do: those that X25519 fixes are fixed when it is used (RFC 7748, section 5).
    text = encode_key(os.urandom(_SIZE)) + "\n"
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        # A link, unlike a rename, does not replace the key that another process has just made.
        path.hardlink_to(temporary)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)
