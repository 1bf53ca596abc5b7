"""Sysctls: keys below /proc/sys, of the network namespace that the calling thread is in."""

from __future__ import annotations

from pathlib import Path

from podwire.errors import KernelError

_ROOT = Path("/proc/sys")


def read(key: str) -> str | None:
    """The value, without its newline; None where the kernel has no such key."""
    try:
        return (_ROOT / key).read_text().strip()
    except FileNotFoundError:
        return None


def write(key: str, value: str) -> None:
    try:
        (_ROOT / key).write_text(value)
    except OSError as error:
        raise KernelError(
            f"sysctl {key.replace('/', '.')}={value}: {error.strerror}", errno=error.errno or 0
        ) from error


def line(key: str, value: str) -> str:
    return f"sysctl -w {key.replace('/', '.')}={value}"
