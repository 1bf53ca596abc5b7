"""What a node of a Flannel network holds, entry by entry, for tests of the reconciler."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from podwire.model.state import (
    Address,
    Bridge,
    Desired,
    Entry,
    FdbEntry,
    Link,
    Neighbor,
    NftChain,
    NftElement,
    NftHook,
    NftOpenSet,
    NftRule,
    NftSet,
    NftTable,
    Route,
    Sysctl,
    Veth,
    Vxlan,
    Why,
)

WHY = Why("Node/node1", "is tried out")

UNDERLAY = (
    "ip link add eth0 type veth peer name wire && ip link set eth0 up && ip link set wire up"
    " && ip address add 172.18.0.11/16 dev eth0"
)

POD_MAC = bytes.fromhex("0a580af40105")


def cause(number: int) -> str:
    return f"Node/node{number}"


def rules(*texts: str) -> tuple[NftRule, ...]:
    return tuple(NftRule(text=text, why=WHY) for text in texts)


TABLE = NftTable(
    name="podwire",
    why=WHY,
    sets=(
        NftSet(
            name="cluster4",
            type="ipv4_addr",
            flags=("interval",),
            elements=("10.244.0.0/16",),
            why=WHY,
        ),
    ),
    open_sets=(NftOpenSet(name="peers4", type="ipv4_addr", why=WHY),),
    chains=(
        NftChain(
            name="tunnel_in",
            hook=NftHook(type="filter", hook="prerouting", priority=-300),
            rules=rules(
                "udp dport 8472 ip saddr != @peers4 drop",
                'iifname "eth0" udp dport 8472 notrack',
            ),
        ),
        NftChain(
            name="postrouting",
            hook=NftHook(type="nat", hook="postrouting", priority=100),
            rules=rules("ip saddr @cluster4 ip daddr != @cluster4 masquerade fully-random"),
        ),
    ),
)


def own() -> tuple[Entry, ...]:
    """The node's own bridge, tunnel and table."""
    return (
        Link(
            name="cni0",
            kind=Bridge(),
            mtu=1450,
            mac=bytes.fromhex("0a580af40101"),
            alias="podwire pods of node1",
            why=WHY,
        ),
        Address(dev="cni0", ip=ip_interface("10.244.1.1/24"), why=WHY),
        Link(
            name="flannel.1",
            kind=Vxlan(vni=1, port=8472, local=ip_address("172.18.0.11"), dev="eth0"),
            mtu=1450,
            mac=bytes.fromhex("020000000001"),
            alias="podwire VTEP of node1",
            why=WHY,
        ),
        Address(dev="flannel.1", ip=ip_interface("10.244.1.0/32"), why=WHY),
        Sysctl(key="net/ipv4/ip_forward", value="1", why=WHY),
        TABLE,
    )


def peer(
    number: int, *, mac: int | None = None, at: int | None = None, subnet: int | None = None
) -> tuple[Entry, ...]:
    """A peer's entries. Its MAC and underlay address follow from its number if not given."""
    network = ip_network(f"10.244.{subnet or number}.0/24")
    vtep_mac = b"\x02\0\0\0\0" + bytes([mac or number])
    dst = ip_address(f"172.18.0.{at or 10 + number}")
    why = Why(cause(number), f"leases {network}")
    base = network.network_address
    return (
        NftElement(set="peers4", key=(dst,), why=why),
        Neighbor(dev="flannel.1", ip=base, mac=vtep_mac, why=why),
        Route(dst=network, via=base, dev="flannel.1", onlink=True, why=why),
        FdbEntry(dev="flannel.1", mac=vtep_mac, dst=dst, why=why),
    )


def port(name: str = "vethc1") -> Link:
    """A pod's host end at the bridge."""
    return Link(
        name=name,
        kind=Veth(peer="eth0", peer_mac=POD_MAC),
        mtu=1450,
        master="cni0",
        hairpin=True,
        alias="podwire pod default/a eth0",
        why=WHY,
    )


def pod() -> tuple[Address | Route, ...]:
    """What that pod's namespace holds."""
    return (
        Address(dev="eth0", ip=ip_interface("10.244.1.5/24"), why=WHY),
        Route(dst=ip_network("0.0.0.0/0"), via=ip_address("10.244.1.1"), dev="eth0", why=WHY),
    )


DESIRED = Desired({cause(1): own(), cause(2): peer(2), cause(3): peer(3)})
