"""Network configurations of a node, and what attaching to one gives.

What lives here: reading the one that a runtime takes, and the values that the runtime's side of CNI
works with. What does not: finding it (`podwire.cni.configurations`), and running plugins
(`runtime_cni`).

Source: https://github.com/containernetworking/cni/blob/main/SPEC.md, section 1; libcni/conf.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from podwire.cni import configurations
from podwire.decoding import from_json
from podwire.errors import PodwireError

Json = dict[str, Any]

SUPPORTED_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

#: What libcni takes for a network's name and a container's id (pkg/utils).
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


class CniError(PodwireError):
    """A plugin failed, or there is no usable configuration. `code` is the plugin's, if it gave one.

    Source of the codes: SPEC.md, section 5, "Error".
    """

    def __init__(self, message: str, *, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Network:
    """One network configuration list; `raw` is the file's content."""

    name: str
    version: str
    plugins: tuple[Json, ...]
    raw: bytes
    disable_check: bool = False
    disable_gc: bool = False

    def at_least(self, version: str) -> bool:
        return SUPPORTED_VERSIONS.index(self.version) >= SUPPORTED_VERSIONS.index(version)

    def has_capability(self, capability: str) -> bool:
        """Whether any plugin takes what the runtime has for `capability`."""
        return any((plugin.get("capabilities") or {}).get(capability) for plugin in self.plugins)


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface of one container. `netns` is empty where the namespace is gone (DEL)."""

    container_id: str
    netns: str
    ifname: str = "eth0"
    args: tuple[tuple[str, str], ...] = ()
    capabilities: Mapping[str, Any] = field(default_factory=dict)


def load_network(directory: Path) -> Network | None:
    """The network of the file in `directory` that sorts first, or None where there is no file.

    Raises CniError, naming the file, for one that is no network configuration.
    """
    for path in configurations.paths(directory):
        try:
            return parse_network(path.read_bytes())
        except FileNotFoundError:
            continue  # replaced or removed while we looked
        except CniError as error:
            raise CniError(f"{path}: {error.message}") from error
    return None


def parse_network(raw: bytes) -> Network:
    """A configuration list, or a single plugin's configuration as a list of one.

    Raises CniError, naming the field.
    """
    try:
        config = from_json(raw, object)
    except msgspec.DecodeError as error:
        raise CniError(f"not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CniError("expected a JSON object")
    name = config.get("name")
    if not isinstance(name, str) or not IDENTIFIER.fullmatch(name):
        raise CniError(f"name: expected letters, digits, '_', '.' and '-', found {name!r}")
    plugins = config.get("plugins", [config])
    if not isinstance(plugins, list) or not plugins:
        raise CniError("plugins: expected a list of at least one plugin")
    for index, plugin in enumerate(plugins):
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not kind or "/" in kind:
            raise CniError(f"plugins[{index}].type: expected an executable's name, found {kind!r}")
        if not isinstance(plugin.get("capabilities") or {}, dict):
            raise CniError(f"plugins[{index}].capabilities: expected an object of booleans")
    return Network(
        name=name,
        version=_version(config),
        plugins=tuple(plugins),
        raw=raw,
        disable_check=config.get("disableCheck") is True,
        disable_gc=config.get("disableGC") is True,
    )


def _version(config: Json) -> str:
    """The highest version that the list offers and we know (`cniVersions` is new in 1.1.0)."""
    versions = config.get("cniVersions") or []
    if not isinstance(versions, list):
        raise CniError(f"cniVersions: expected a list of versions, found {versions!r}")
    offered = [config.get("cniVersion", "0.1.0"), *versions]
    known = [version for version in SUPPORTED_VERSIONS if version in offered]
    if not known:
        raise CniError(f"cniVersion: {offered[0]!r} is not one of {', '.join(SUPPORTED_VERSIONS)}")
    return known[-1]


def addresses(result: Json, ifname: str) -> list[str]:
    """IPs (without prefix length) that a result of ADD gives the container's interface."""
    interfaces = result.get("interfaces") or []
    found = []
    for entry in result.get("ips") or []:
        index = entry.get("interface")
        if isinstance(index, int) and index < len(interfaces):
            interface = interfaces[index]
            if interface.get("name") != ifname or not interface.get("sandbox"):
                continue
        found.append(entry["address"])
    # Versions before 0.3.0 have one address a family.
    found += [result[family]["ip"] for family in ("ip4", "ip6") if result.get(family)]
    return [address.partition("/")[0] for address in found]
