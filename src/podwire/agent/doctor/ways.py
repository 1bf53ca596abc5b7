"""The way to each peer as the checks see it: which device and port, and whom to ask at its end.

What lives here: reading that out of the fabric. What does not: probes (`measure`), and judging
what became of them. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from podwire.model.cluster import NetworkConfig, Node
from podwire.model.state import IPAddress, IPNetwork
from podwire.model.tunnel import OVERHEAD_ENCRYPTED
from podwire.plan import carrier
from podwire.plan.paths import Path, paths
from podwire.plan.transport import udp, vxlan
from podwire.plan.transport.auto import Kind
from podwire.plan.wiring import bridge


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How packets for a peer's pods of one IP version leave this node, and get there.

    `dev` is the device that the route leads to, `node` the peer's address on the underlay. `far` is
    an address of the peer itself that is reached in the same way; None where it has none, as with
    plain routes to routed pods. `added` are the bytes that a tunnel adds, `port` is its UDP port,
    0 without one.
    """

    peer: Node
    version: int
    kind: Kind
    dev: str
    node: IPAddress
    far: IPAddress | None
    added: int = 0
    port: int = 0

    @property
    def words(self) -> str:
        """As the end of a sentence: `through flannel.1`, `by a plain route over eth0`."""
        if self.kind == "direct":
            return f"by a plain route over {self.dev}"
        return f"through {self.dev}"


def ways(
    network: NetworkConfig, peers: Iterable[Node], blocked: Collection[str] = ()
) -> tuple[Way, ...]:
    """One a peer and IP version of its pods. `blocked` are peers that VXLAN does not reach."""
    return tuple(
        _way(network, peer, path)
        for peer in peers
        for path in paths(network, peer, blocked=peer.name in blocked)
    )


def _way(network: NetworkConfig, peer: Node, path: Path) -> Way:
    fabric, lease = network.fabric, peer.lease
    assert lease is not None  # noqa: S101  without one there is no path
    node = next(one.ip for one in lease.endpoints if str(one.ip) == path.via)
    far = _far(network, lease.subnets, path)
    match path.kind:
        case "direct":
            dev, port, added = network.underlay.dev, 0, 0
        case "udp":
            dev, port = fabric.udp_dev, fabric.udp_port
            added = udp.OVERHEAD[node.version] + (OVERHEAD_ENCRYPTED if fabric.encrypt else 0)
        case _:
            dev, port = fabric.vxlan_dev_over(node.version), fabric.vxlan_port
            added = vxlan.OVERHEAD[node.version]
    return Way(
        peer=peer,
        version=path.version,
        kind=path.kind,
        dev=dev,
        node=node,
        far=far,
        added=added,
        port=port,
    )


def _far(network: NetworkConfig, subnets: tuple[IPNetwork, ...], path: Path) -> IPAddress | None:
    fabric = network.fabric
    tunnelled = path.kind in ("vxlan", "udp") and not fabric.is_one_segment
    # With `auto` a node has both tunnels, and an address of theirs, however it is reached.
    has_base = tunnelled or fabric.transport == "auto"
    # Beside a bridge, IPv6's is that of all routers on it, too, of which none answers by it.
    if has_base and (tunnelled or fabric.wiring != "bridge"):
        return carrier.base(subnets, path.version)
    if fabric.wiring != "bridge":
        return None
    whole = (one for one in subnets if one.version == path.version)
    first = next((one for one in whole if one.prefixlen < one.max_prefixlen), None)
    return bridge.gateway(first) if first is not None else None


def devices(network: NetworkConfig) -> tuple[str, ...]:
    """This node's own devices of the network: bridge and tunnels, those that the fabric has."""
    fabric, underlay = network.fabric, network.underlay
    found = [fabric.bridge] if fabric.wiring == "bridge" else []
    if fabric.uses_vxlan:
        found += [fabric.vxlan_dev_over(ip.version) for ip in underlay.ips]
    if fabric.uses_udp:
        found.append(fabric.udp_dev)
    return tuple(found)
