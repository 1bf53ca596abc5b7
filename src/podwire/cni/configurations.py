"""Network configurations of a node: which plugins runtimes run by the files in /etc/cni/net.d.

What lives here: finding and reading them, other networks' included. What does not: writing ours
(`install`), and what a runtime wants of one beyond its plugins (`podwire.lab.cni_network`).

Runtimes take the first file by name. One that can't be read, is no JSON or names no plugin is
broken: a runtime takes nothing from it, and those that follow are not tried in its place.

Source: libcni/conf.go (ConfFiles, ConfListFromBytes) of github.com/containernetworking/cni.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from podwire.decoding import from_json

_SUFFIXES = (".conf", ".conflist", ".json")


class Configuration(msgspec.Struct, frozen=True):
    """A file, and the types of the plugins that it has run, in that order; none if broken."""

    path: Path
    plugins: tuple[str, ...] = ()


class _Plugin(msgspec.Struct):
    type: str


class _File(msgspec.Struct):
    """A list, or the configuration of a single plugin."""

    type: str = ""
    plugins: tuple[_Plugin, ...] | None = None


def paths(directory: Path) -> list[Path]:
    """The files that runtimes look at, in their order; none where there is no such directory."""
    try:
        return sorted(path for path in directory.iterdir() if path.suffix in _SUFFIXES)
    except (FileNotFoundError, NotADirectoryError):
        return []


def configurations(directory: Path) -> Iterator[Configuration]:
    """What is in those files."""
    for path in paths(directory):
        yield Configuration(path, _plugins(path))


def _plugins(path: Path) -> tuple[str, ...]:
    try:
        found = from_json(path.read_bytes(), _File)
    except (OSError, msgspec.DecodeError):
        return ()
    types = (found.type,) if found.plugins is None else tuple(one.type for one in found.plugins)
    return types if all(types) else ()
