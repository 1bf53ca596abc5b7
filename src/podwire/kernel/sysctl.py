"""Sysctls: keys below /proc/sys, of the network namespace that the calling thread is in."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote

from podwire.errors import KernelError

_ROOT = Path("/proc/sys")

#: Settings of one interface, which come and go with it. Those of `all` and `default` stay.
_OF_INTERFACE = re.compile(r"net/ipv[46]/(?:conf|neigh)/(?!all/|default/)([^/]+)/")


def read(key: str) -> str | None:
    """The value, without its newline; None where the kernel has no such key."""
    try:
        return (_ROOT / key).read_text().strip()
    except FileNotFoundError:
        return None


def is_amiss(key: str, value: str) -> bool:
    """Whether it is another value. Of a machine without IPv6 none of its settings is amiss."""
    found = read(key)
    return found != value and not (found is None and key.startswith("net/ipv6/"))


def write(key: str, value: str) -> None:
    try:
        (_ROOT / key).write_text(value)
    except OSError as error:
        raise KernelError(
            f"sysctl {key}={value}: {error.strerror}", errno=error.errno or 0
        ) from error


def reset(key: str) -> None:
    """Have a setting of an interface as a new interface has it. Raises KernelError."""
    default = read(key.replace(f"/{interface_of(key)}/", "/default/", 1))
    if default is not None and read(key) not in (default, None):
        write(key, default)


def interface_of(key: str) -> str:
    """The link whose setting it is; empty for one of the whole network stack."""
    found = _OF_INTERFACE.match(key)
    return found.group(1) if found else ""


def line(key: str, value: str) -> str:
    """The command. A device's name may have dots (`flannel.1`), which would be slashes in the usual
    spelling, or what a shell takes for something else."""
    plain = "." not in key and quote(key) == key
    name = key.replace("/", ".") if plain else quote(key)
    return f"sysctl -w {name}={value}"
