"""What an agent is told: one value, checked before anything is touched."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from podwire.agent.fabrics import FabricOptions
from podwire.errors import InputError
from podwire.model.fabric import Fabric, Guard
from podwire.model.state import IPNetwork
from podwire.plan.profiles import not_for_pods, refuse_idle

#: What does anti-spoofing; by itself programs where the kernel takes them.
GuardChoice: TypeAlias = Literal["auto"] | Guard

#: Where another one was not asked for.
PROBE_INTERVAL_S = 1.0


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Paths, names and numbers.

    `network` is the whole cluster's pod network, a CIDR a family; none for the profile's own or
    what the store says. `store` is `kube`, or the URL of an etcd. `probe_interval_s` is None for
    the usual one.
    """

    node_name: str
    network: tuple[IPNetwork, ...] = ()
    options: FabricOptions = FabricOptions()
    store: str = "kube"
    kubeconfig: Path | None = None
    iface: str | None = None
    masquerade: bool = True
    guard: GuardChoice = "auto"
    probe_interval_s: float | None = None
    health_address: str = "127.0.0.1:9910"
    run_dir: Path = Path("/run/podwire")
    state_dir: Path = Path("/var/lib/podwire")
    cni_conf_dir: Path = Path("/etc/cni/net.d")
    cni_bin_dir: Path = Path("/opt/cni/bin")
    subnet_file: Path = Path("/run/flannel/subnet.env")

    def refuse_idle(self, fabric: Fabric) -> None:
        """Raise InputError for one of these that changes nothing in this fabric."""
        guard = self.guard if self.guard != "auto" else None
        given = {"guard": guard, "probe_interval": self.probe_interval_s}
        refuse_idle(fabric, given, ())

    @property
    def cni_socket(self) -> Path:
        return self.run_dir / "cni.sock"

    @property
    def api_socket(self) -> Path:
        return self.run_dir / "agent.sock"

    @property
    def operator_socket(self) -> Path:
        return self.run_dir / "operator.sock"

    @property
    def tunnel_socket(self) -> Path:
        return self.run_dir / "tunnel.sock"

    @property
    def tunnel_lock(self) -> Path:
        """The tunnel's process holds it."""
        return self.run_dir / "tunnel.sock.lock"

    @property
    def paths_file(self) -> Path:
        """The peers that VXLAN does not get through to."""
        return self.run_dir / "paths.json"

    @property
    def tunnel_key(self) -> Path:
        """The private key of the encrypted tunnel."""
        return self.state_dir / "tunnel.key"

    @property
    def fabric_file(self) -> Path:
        """What the kernel was last made to hold: to be removed when it is another fabric."""
        return self.state_dir / "fabric.json"


#: Of Nodes (RFC 1123, section 2.1), and of hosts without Kubernetes, which may have capitals.
_NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_NODE_NAME_LEN = 253


def parse_node_name(text: str) -> str:
    """A node's name, as it is. Raises InputError for what none can be called."""
    if len(text) > _NODE_NAME_LEN or not _NODE_NAME.fullmatch(text):
        raise InputError(
            f"{text!r} is no node's name: letters, digits, '-' and '.', {_NODE_NAME_LEN} at most",
            field="--node-name",
            remedy="kubectl get nodes lists them",
        )
    return text


def parse_network(text: str) -> tuple[IPNetwork, ...]:
    """`10.244.0.0/16`, or one of each family with a comma. Raises InputError."""
    networks: list[IPNetwork] = []
    for part in text.split(","):
        try:
            network = ipaddress.ip_network(part.strip())
        except ValueError as error:
            raise InputError(
                f"{error}", field="--network", remedy="give a CIDR such as 10.244.0.0/16"
            ) from error
        if reason := not_for_pods(network):
            raise InputError(
                f"{network} can't be a pod network: {reason}",
                field="--network",
                remedy="give one for private use, such as 10.244.0.0/16 or fd00:10:244::/48",
            )
        networks.append(network)
    versions = [network.version for network in networks]
    if len(set(versions)) != len(versions):
        raise InputError(
            f"{text} names two networks of one family", field="--network", remedy="give one each"
        )
    return tuple(networks)


def parse_block_size(text: str) -> dict[int, int]:
    """`26`, or `26,122` for both families: prefix lengths by IP version. Raises InputError."""
    found: dict[int, int] = {}
    for part in text.split(","):
        length = int(part) if part.strip().isdecimal() else 0
        # Larger ones leave a node no choice, smaller ones are a route for each handful of pods.
        version = next((v for v, (low, high) in _BLOCK_LEN.items() if low <= length <= high), None)
        if version is None or version in found:
            low, high = _BLOCK_LEN[4]
            low6, high6 = _BLOCK_LEN[6]
            raise InputError(
                f"{text!r} is no prefix length of {low} to {high} (IPv4) or {low6} to {high6}"
                " (IPv6), nor one of each",
                field="--block-size",
                remedy="e.g. 26, or 26,122",
            )
        found[version] = length
    return found


#: Prefix lengths of blocks, by IP version, as IPPools have them: from 4 to 4,096 addresses.
_BLOCK_LEN = {4: (20, 30), 6: (116, 126)}


def parse_listen(text: str) -> tuple[str, int]:
    """`127.0.0.1:9910` or `[::]:9910` as host and port. Raises InputError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(
            f"{text!r} is not ADDRESS:PORT", field="--health-address", remedy="e.g. 127.0.0.1:9910"
        )
    return host.strip("[]"), int(port)
