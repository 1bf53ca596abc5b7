"""The tunnels' door: encapsulated packets come from the cluster's nodes, or are dropped.

Whoever reaches a node's VXLAN port could otherwise put any packet into the pod network. What is
dropped is counted. Only packets to the node itself are looked at: what pods send to each other at
that port is theirs. The peers'
addresses are elements of two sets, each kept under the peer that it belongs to, so that a change of
one costs the same however many there are. The UDP tunnel's process checks by itself, and more.
Pure: values in, nft objects out.
"""

from __future__ import annotations

from podwire.model.cluster import NetworkConfig, Node
from podwire.model.state import (
    Entry,
    NftChain,
    NftCounter,
    NftElement,
    NftHook,
    NftOpenSet,
    NftRule,
    Why,
)

_RAW = -300  # nft's name for the priority before conntrack

PEERS = {4: "peers4", 6: "peers6"}
STRANGER = NftCounter(
    name="vxlan_stranger", meaning="VXLAN packets from an address that was no known node's"
)


def open_sets(config: NetworkConfig) -> tuple[NftOpenSet, ...]:
    """The sets of the peers' addresses, one a family of the underlay."""
    if not config.fabric.uses_vxlan:
        return ()
    why = Why(f"Node/{config.node}", "takes tunnel packets from nodes only")
    return tuple(
        NftOpenSet(name=PEERS[ip.version], type=f"ipv{ip.version}_addr", why=why)
        for ip in config.underlay.ips
    )


def counters(config: NetworkConfig) -> tuple[NftCounter, ...]:
    return (STRANGER,) if config.fabric.uses_vxlan else ()


def plan_chains(config: NetworkConfig) -> tuple[NftChain, ...]:
    """Tunnel packets between nodes bypass conntrack, and others are dropped.

    Their source ports spread over many (RFC 7348, section 5, for the underlay's load balancing),
    so tracking them fills the table with entries that nothing ever looks at, at a price for each
    packet. What is inside is tracked as usual.
    """
    fabric, name = config.fabric, f"Node/{config.node}"
    ports = [fabric.vxlan_port] if fabric.uses_vxlan else []
    ports += [fabric.udp_port] if fabric.uses_udp else []
    if not ports:
        return ()
    received = Why(name, "receives tunnel packets, which need no conntrack")
    sent = Why(name, "sends tunnel packets, which need no conntrack")
    untracked = [
        NftRule(text=f'iifname "{config.underlay.dev}" udp dport {port} notrack', why=received)
        for port in ports
    ]
    guards = [_chain("tunnel_guard", "input", _guards(config))] if fabric.uses_vxlan else []
    return (
        _chain("tunnel_in", "prerouting", untracked),
        *guards,
        _chain(
            "tunnel_out",
            "output",
            [NftRule(text=f"udp dport {port} notrack", why=sent) for port in ports],
        ),
    )


def _chain(name: str, hook: str, rules: list[NftRule]) -> NftChain:
    return NftChain(
        name=name, hook=NftHook(type="filter", hook=hook, priority=_RAW), rules=tuple(rules)
    )


def _guards(config: NetworkConfig) -> list[NftRule]:
    """One a family of the underlay."""
    why = Why(f"Node/{config.node}", "takes tunnel packets from nodes only")
    found = []
    for ip in config.underlay.ips:
        family = "ip" if ip.version == 4 else "ip6"
        match = f"udp dport {config.fabric.vxlan_port} {family} saddr != @{PEERS[ip.version]}"
        found.append(NftRule(text=f'{match} counter name "{STRANGER.name}" drop', why=why))
    return found


def plan_peer(config: NetworkConfig, peer: Node) -> tuple[Entry, ...]:
    """The addresses that a peer's packets may come from: its endpoints and its node addresses."""
    if not config.fabric.uses_vxlan or peer.lease is None:
        return ()
    versions = {ip.version for ip in config.underlay.ips}
    ips = dict.fromkeys((*(one.ip for one in peer.lease.endpoints), *peer.internal_ips))
    return tuple(
        NftElement(set=PEERS[ip.version], key=(ip,), why=Why(f"Node/{peer.name}", f"has {ip}"))
        for ip in ips
        if ip.version in versions
    )
