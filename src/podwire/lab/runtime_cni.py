"""The runtime's side of CNI: which network, which plugins in which order, with what input.

What lives here: what libcni does for containerd and CRI-O, so that a plugin cannot tell the lab's
kubelet from theirs. What does not: the plugin's side (`podwire.cni`), and what a pod wants of its
network (`kubelet.attachment`).

How it works: the file of /etc/cni/net.d that sorts first says which plugins run. Each is executed
with the operation in its environment and its configuration on standard input, completed with the
list's name and version, with what the runtime has for the capabilities it declares
(`runtimeConfig`), and with the result so far (`prevResult`). ADD goes through the plugins forwards,
DEL backwards. The result of ADD is kept on disk, in libcni's format and place, with the
configuration that made it: DEL, CHECK and GC start from it.

Source: https://github.com/containernetworking/cni/blob/main/SPEC.md, version 1.1.0; libcni/api.go.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from podwire.decoding import from_json
from podwire.files import write_atomically
from podwire.lab.cni_network import IDENTIFIER, Attachment, CniError, Json, Network, parse_network
from podwire.lab.cni_plugin import execute, plugin_error

_CACHE_KIND = "cniCacheV1"


class CniRuntime:
    """Runs the plugins found in `path` (directories), keeping results in `cache`."""

    def __init__(self, path: Sequence[Path], cache: Path = Path("/var/lib/cni")) -> None:
        self._path = tuple(path)
        self._results = cache / "results"

    async def add(self, network: Network, attachment: Attachment) -> Json:
        """Attach, and return the last plugin's result. Raises CniError.

        After a failure the caller owes a `delete`, as the specification asks.
        """
        _check_id(attachment)
        result: Json | None = None
        for plugin in network.plugins:
            output = await self._run("ADD", network, plugin, attachment, result)
            result = _decode_result(plugin, output)
        if result is None:
            raise CniError(f"network {network.name} has no plugins")
        self._remember(network, attachment, result)
        return result

    async def check(self, network: Network, attachment: Attachment) -> None:
        """Raises CniError when the attachment is not as ADD left it."""
        if not network.at_least("0.4.0"):
            raise CniError(f'configuration version "{network.version}" does not support CHECK')
        if network.disable_check:
            return
        result = (self._recall(network.name, attachment) or {}).get("result")
        for plugin in network.plugins:
            await self._run("CHECK", network, plugin, attachment, result)

    async def delete(self, network: Network, attachment: Attachment) -> None:
        """Detach. Done again for the same attachment, it succeeds again. Raises CniError.

        It runs with the configuration that ADD ran with, where that is known: what is there now
        may be of another plugin.
        """
        _check_id(attachment)
        cached = self._recall(network.name, attachment)
        result = None
        if cached is not None:
            network, attachment = _as_added(cached, network, attachment)
            result = cached.get("result") if network.at_least("0.4.0") else None
        for plugin in reversed(network.plugins):
            await self._run("DEL", network, plugin, attachment, result)
        self._file(network.name, attachment).unlink(missing_ok=True)

    async def collect(self, network: Network, valid: Iterable[Attachment]) -> list[CniError]:
        """DEL each attachment on record that is not valid any more, then GC by the plugins.

        Goes on after a failure, and returns all of them.
        """
        keep = {(attachment.container_id, attachment.ifname) for attachment in valid}
        errors = []
        for stale in self.attachments(network.name):
            if (stale.container_id, stale.ifname) not in keep:
                try:
                    await self.delete(network, stale)
                except CniError as error:
                    errors.append(error)
        if not network.at_least("1.1.0") or network.disable_gc:
            return errors
        listed = [{"containerID": container, "ifname": ifname} for container, ifname in keep]
        for plugin in network.plugins:
            try:
                await self._run(
                    "GC",
                    network,
                    {**plugin, "cni.dev/valid-attachments": listed},
                    Attachment("", "", ""),
                    None,
                )
            except CniError as error:
                errors.append(error)
        return errors

    async def status(self, network: Network) -> None:
        """Raises CniError when a plugin is not ready for ADD (only since 1.1.0 can it say so)."""
        if network.at_least("1.1.0"):
            for plugin in network.plugins:
                await self._run("STATUS", network, plugin, Attachment("", "", ""), None)

    def attachments(self, network_name: str) -> list[Attachment]:
        """The attachments to a network that ADD left a record of."""
        found = []
        for path in sorted(self._results.glob(f"{network_name}-*")):
            cached = _read_cache(path)
            if cached is not None and cached.get("networkName") == network_name:
                found.append(
                    Attachment(
                        container_id=cached["containerId"],
                        netns=cached.get("netns", ""),
                        ifname=cached["ifName"],
                        args=tuple((key, value) for key, value in cached.get("cniArgs") or ()),
                        capabilities=cached.get("capabilityArgs") or {},
                    )
                )
        return found

    # -- one plugin ---------------------------------------------------------------------------

    async def _run(
        self,
        command: str,
        network: Network,
        plugin: Json,
        attachment: Attachment,
        result: Json | None,
    ) -> bytes:
        config = {
            **{key: value for key, value in plugin.items() if key not in _LIST_FIELDS},
            "name": network.name,
            "cniVersion": network.version,
        }
        if result is not None:
            config["prevResult"] = result
        offered = {
            capability: attachment.capabilities[capability]
            for capability, wanted in (plugin.get("capabilities") or {}).items()
            if wanted and capability in attachment.capabilities
        }
        if offered:
            config["runtimeConfig"] = offered
        executable = self._find(plugin["type"])
        code, output, errors = await execute(
            executable, self._environment(command, attachment), msgspec.json.encode(config)
        )
        if code != 0:
            raise plugin_error(plugin["type"], command, code, output, errors)
        return output

    def _find(self, plugin: str) -> Path:
        for directory in self._path:
            if os.access(directory / plugin, os.X_OK):
                return directory / plugin
        searched = ", ".join(str(directory) for directory in self._path)
        raise CniError(f'failed to find plugin "{plugin}" in path [{searched}]')

    def _environment(self, command: str, attachment: Attachment) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": attachment.container_id,
            "CNI_NETNS": attachment.netns,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in attachment.args),
            "CNI_IFNAME": attachment.ifname,
            "CNI_PATH": ":".join(str(directory) for directory in self._path),
        }

    # -- results kept -------------------------------------------------------------------------

    def _file(self, network_name: str, attachment: Attachment) -> Path:
        name = f"{network_name}-{attachment.container_id}-{attachment.ifname}"
        return self._results / name

    def _remember(self, network: Network, attachment: Attachment, result: Json) -> None:
        self._results.mkdir(parents=True, exist_ok=True, mode=0o700)
        cached = {
            "kind": _CACHE_KIND,
            "containerId": attachment.container_id,
            "config": base64.b64encode(network.raw).decode(),
            "ifName": attachment.ifname,
            "networkName": network.name,
            "netns": attachment.netns,
            "cniArgs": attachment.args,
            "capabilityArgs": attachment.capabilities,
            "result": result,
        }
        write_atomically(self._file(network.name, attachment), msgspec.json.encode(cached), 0o600)

    def _recall(self, network_name: str, attachment: Attachment) -> Json | None:
        return _read_cache(self._file(network_name, attachment))


#: Of a list of one made from a single configuration, what is not the plugin's.
_LIST_FIELDS = frozenset({"cniVersions", "disableCheck", "disableGC"})


def _read_cache(path: Path) -> Json | None:
    """What ADD wrote down; None for what is missing, damaged or of another format."""
    try:
        cached = from_json(path.read_bytes(), Json)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    whole = all(isinstance(cached.get(key), str) for key in ("containerId", "ifName", "config"))
    return cached if whole and cached.get("kind") == _CACHE_KIND else None


def _as_added(cached: Json, network: Network, attachment: Attachment) -> tuple[Network, Attachment]:
    """Network and attachment as they were for ADD; the network namespace is today's."""
    with suppress(CniError, ValueError):
        network = parse_network(base64.b64decode(cached["config"]))
    return network, Attachment(
        container_id=attachment.container_id,
        netns=attachment.netns,
        ifname=attachment.ifname,
        args=tuple((key, value) for key, value in cached.get("cniArgs") or attachment.args),
        capabilities=cached.get("capabilityArgs") or {},
    )


def _check_id(attachment: Attachment) -> None:
    if not IDENTIFIER.fullmatch(attachment.container_id):
        raise CniError(f"invalid container id {attachment.container_id!r}")


def _decode_result(plugin: Json, output: bytes) -> Json:
    try:
        return from_json(output, Json)
    except msgspec.DecodeError as error:
        raise CniError(f'plugin type="{plugin["type"]}" failed (add): no result: {error}') from None
