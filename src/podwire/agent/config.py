"""What an agent is told: one value, checked before anything is touched."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import msgspec

from podwire.errors import InputError
from podwire.model.state import IPNetwork


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Paths, names and numbers. `network` is the whole cluster's pod network, a CIDR a family."""

    node_name: str
    network: tuple[IPNetwork, ...]
    kubeconfig: Path | None = None
    iface: str | None = None
    vni: int = 1
    vxlan_port: int = 8472
    masquerade: bool = True
    health_address: str = "127.0.0.1:9910"
    run_dir: Path = Path("/run/podwire")
    state_dir: Path = Path("/var/lib/podwire")
    cni_conf_dir: Path = Path("/etc/cni/net.d")
    cni_bin_dir: Path = Path("/opt/cni/bin")
    subnet_file: Path = Path("/run/flannel/subnet.env")

    @property
    def cni_socket(self) -> Path:
        return self.run_dir / "cni.sock"

    @property
    def api_socket(self) -> Path:
        return self.run_dir / "agent.sock"

    @property
    def operator_socket(self) -> Path:
        return self.run_dir / "operator.sock"


def parse_network(text: str) -> tuple[IPNetwork, ...]:
    """`10.244.0.0/16`, or one of each family with a comma. Raises InputError."""
    networks: list[IPNetwork] = []
    for part in text.split(","):
        try:
            networks.append(ipaddress.ip_network(part.strip()))
        except ValueError as error:
            raise InputError(
                f"{error}", field="--network", remedy="give a CIDR such as 10.244.0.0/16"
            ) from error
    versions = [network.version for network in networks]
    if len(set(versions)) != len(versions):
        raise InputError(
            f"{text} names two networks of one family", field="--network", remedy="give one each"
        )
    return tuple(networks)


def parse_listen(text: str) -> tuple[str, int]:
    """`127.0.0.1:9910` or `[::]:9910` as host and port. Raises InputError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(
            f"{text!r} is not ADDRESS:PORT", field="--health-address", remedy="e.g. 127.0.0.1:9910"
        )
    return host.strip("[]"), int(port)
