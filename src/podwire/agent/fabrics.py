"""Which fabric this agent runs: what it was told by options, and by the store where that has a say.

Flannel's network in etcd has one configuration for all nodes, so there an option may add what
Flannel has no words for and must not contradict the rest. Pure: values in, values out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from podwire.cluster.source import BackendOptions, StoredNetwork
from podwire.errors import InputError
from podwire.model.fabric import Fabric
from podwire.model.state import IPNetwork
from podwire.plan import profiles

#: Flannel's word for each transport, and ours where it has none.
_TRANSPORT_OF: Mapping[str, str] = {
    "vxlan": "vxlan",
    "host-gw": "direct",
    "udp": "udp",
    "l2-vxlan": "l2-vxlan",
    "auto": "auto",
}


class FabricOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a person said of the fabric; None is the profile's own. Fields as `Fabric` has them."""

    profile: str | None = None
    ipam: str | None = None
    wiring: str | None = None
    transport: str | None = None
    cross_subnet: bool | None = None
    vni: int | None = None
    vxlan_port: int | None = None
    learning: bool | None = None
    gbp: bool | None = None
    mtu: int | None = None
    udp_port: int | None = None
    encrypt: bool | None = None
    hairpin: bool | None = None
    promiscuous: bool | None = None
    isolate_host: bool | None = None
    anti_spoofing: bool | None = None
    block_len: int | None = None
    block_len6: int | None = None

    def fabric(self) -> Fabric:
        """The fabric that they mean. Raises InputError where the parts don't fit."""
        return profiles.fabric(**msgspec.structs.asdict(self))

    def refuse_idle(self, fabric: Fabric, networks: Iterable[IPNetwork]) -> None:
        """Raise InputError for an option that changes nothing in this fabric and pod network."""
        versions = {network.version for network in networks}
        profiles.refuse_idle(fabric, msgspec.structs.asdict(self), versions)

    def agreeing_with(self, stored: BackendOptions) -> FabricOptions:
        """These, and what the store says. Raises InputError where the two contradict each other."""
        transport = _TRANSPORT_OF.get(stored.type)
        if transport is None:
            raise InputError(
                f"{stored.type!r} is none of {', '.join(_TRANSPORT_OF)}",
                field="Backend.Type",
                remedy="change the network's configuration in the store",
            )
        given = profiles.PROFILES.get(self.profile or "")
        if given is not None and self.transport is None and given.transport != transport:
            raise _contradiction("profile", self.profile, "transport", transport)
        port = "udp_port" if transport == "udp" else "vxlan_port"
        theirs: dict[str, Any] = {"transport": transport, "mtu": stored.mtu, port: stored.port}
        if transport in ("vxlan", "l2-vxlan", "auto"):
            theirs["vni"] = stored.vni
        if transport == "vxlan":
            theirs["cross_subnet"] = stored.direct_routing
            theirs |= {"learning": stored.learning or None, "gbp": stored.gbp or None}
        changes = {name: value for name, value in theirs.items() if value is not None}
        for name, value in changes.items():
            mine = getattr(self, name)
            if mine is not None and mine != value:
                raise _contradiction(name, mine, name, value)
        return msgspec.structs.replace(self, **changes)


def stored_fabric(
    options: FabricOptions, networks: tuple[IPNetwork, ...], stored: StoredNetwork | None
) -> tuple[Fabric, tuple[IPNetwork, ...]]:
    """The fabric and the pod network that this node is in.

    `networks` are those of `--network`, none for the default. Raises InputError.
    """
    if stored is None:
        fabric = options.fabric()
        networks = networks or profiles.default_network(fabric)
        options.refuse_idle(fabric, networks)
        return fabric, networks
    if networks and set(networks) != set(stored.networks):
        mine, theirs = (", ".join(map(str, some)) for some in (networks, stored.networks))
        raise _contradiction("network", mine, "network", theirs)
    fabric = options.agreeing_with(stored.backend).fabric()
    # What the store says beside the point is no fault of this node's.
    options.refuse_idle(fabric, stored.networks)
    return fabric, stored.networks


def _contradiction(option: str, mine: object, name: str, theirs: object) -> InputError:
    return InputError(
        f"{mine} is not what the network's configuration in the store says: {name} {theirs}",
        field="--" + option.replace("_", "-"),
        remedy="leave the option out, or change the configuration for all nodes",
    )
