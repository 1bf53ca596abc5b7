"""Files and Unix sockets replaced as a whole: whoever opens one gets the old or the new."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from podwire.errors import PodwireError


def write_atomically(
    path: Path, content: bytes, mode: int = 0o644, *, parents: bool = False
) -> bool:
    """Have a file with this content and mode; False where it was there already, and untouched.

    It is written under another name in the same directory, which with `parents` is made, and
    renamed; it is never readable for more than `mode` lets. Raises PodwireError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if _is_so(path, content, mode):
            return False
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
                os.fchmod(file.fileno(), mode)  # Whatever the umask takes away.
                file.write(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise PodwireError(f"cannot write {path}: {error.strerror or error}") from error
    return True


def listen_unix(path: Path, backlog: int) -> socket.socket:
    """A listening socket that only its owner may connect to; what a dead process left is replaced.

    It does not block. Raises OSError.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    # Bound under another name and renamed, so that the path is never one that anybody may connect
    # to (the mode), nor one that nobody listens at.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        listener.bind(str(temporary))
        temporary.chmod(0o600)
        listener.listen(backlog)
        temporary.replace(path)
    except OSError:
        listener.close()
        raise
    return listener


def _is_so(path: Path, content: bytes, mode: int) -> bool:
    try:
        return path.read_bytes() == content and path.stat().st_mode & 0o777 == mode
    except FileNotFoundError:
        return False
