"""Which rules of others stop what a node forwards, or its tunnel's packets; in words, and how to
let them pass.

What lives here: the packets that a node of the pod network has to let through. What does not:
how a ruleset judges them, which is `podwire.kernel.ruling`.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Literal, NamedTuple

import msgspec

from podwire.agent.doctor.ways import Way
from podwire.kernel import sysctl
from podwire.kernel.matching import Flow
from podwire.kernel.rules import Key, Ruleset
from podwire.kernel.ruling import Ruling, rulings
from podwire.model.cluster import NetworkConfig, Node
from podwire.model.state import IPAddress

FORWARD_HOOKS = ("ingress", "prerouting", "forward", "postrouting")
_IN, _OUT = ("ingress", "prerouting", "input"), ("output", "postrouting", "egress")
TUNNEL_HOOKS = (*_IN, *_OUT)

_BRIDGED = {4: "net/bridge/bridge-nf-call-iptables", 6: "net/bridge/bridge-nf-call-ip6tables"}
#: Of a connection between pods. Any other would do: with none, a rule about a single port or about
#: ICMP would leave it open whether all else is stopped.
_PORTS = 45678, 34567
#: Documentation addresses (RFC 5737, RFC 3849): somewhere outside.
_OUTSIDE = {4: "192.0.2.1", 6: "2001:db8::1"}

Version = Literal[4, 6]


class Culprit(NamedTuple):
    """What it is, what to do, and the lines for that."""

    text: str
    remedy: str
    lines: tuple[str, ...] = ()


def culprit(ruling: Ruling, *accepts: str) -> Culprit:
    """What stops packets.

    `accepts` are the arguments of iptables that let the packets pass, behind the chain's name
    (`-s 10.244.0.0/16 -j ACCEPT`), used where iptables made the chain.
    """
    chain, rule = ruling.chain, ruling.rule
    if rule is None:
        what = f"the policy of {chain}"
    else:
        what = f"a rule in {chain}: {rule.text or f'handle {rule.handle}'}"
    if ruling.unless is not None:
        what += f" (unless it passes by `{ruling.unless.text}`)"
    if chain.by_iptables:
        program = str(chain).partition(" ")[0]
        table = f" -t {chain.table}" if chain.table != "filter" else ""
        lines = (f"{program}{table} -I {chain.name} {accept}" for accept in accepts)
        return Culprit(what, "accept them before that", tuple(lines))
    where = f"{chain.family} {chain.table} {chain.name}"
    if rule is None:
        return Culprit(what, "accept them there, or have whoever made that table do so")
    return Culprit(
        what,
        "have whoever made that table accept them, or delete the rule",
        (f"nft delete rule {where} handle {rule.handle}",),
    )


def forwarded_and_stopped(
    network: NetworkConfig, ruleset: Ruleset, found_ways: tuple[Way, ...], inside: tuple[str, ...]
) -> list[tuple[Ruling, list[tuple[str, Flow]]]]:
    """What stops pods' packets on their way through this node, and which packets those are.

    `inside` are the devices that pods' packets come from: the bridge, or links of two pods.
    """
    found: dict[tuple[Key, int], tuple[Ruling, list[tuple[str, Flow]]]] = {}
    for what, flow in _flows(network, found_ways, inside):
        for ruling in rulings(ruleset, FORWARD_HOOKS, flow):
            handle = ruling.rule.handle if ruling.rule is not None else 0
            found.setdefault((ruling.chain.key, handle), (ruling, []))[1].append((what, flow))
    return list(found.values())


def tunnelled_and_stopped(
    network: NetworkConfig, ruleset: Ruleset, way: Way
) -> list[tuple[Ruling, str]]:
    """What stops tunnel packets of that peer on this node, and which direction of them."""
    other, dev = way.node, network.underlay.dev
    own = network.underlay.ip_of(other.version)
    if own is None:
        return []
    received = Flow(
        version=other.version,
        iifname=dev,
        source=other,
        target=own,
        protocol="udp",
        dport=way.port,
        target_type="local",
        state="untracked",  # By our own table.
    )
    sent = msgspec.structs.replace(
        received, iifname=None, oifname=dev, source=own, target=other, target_type="unicast"
    )
    return [
        *((one, f"from {way.peer.name}") for one in rulings(ruleset, _IN, received)),
        *((one, f"to {way.peer.name}") for one in rulings(ruleset, _OUT, sent)),
    ]


def _flows(
    network: NetworkConfig, found_ways: tuple[Way, ...], inside: tuple[str, ...]
) -> Iterator[tuple[str, Flow]]:
    """What a node forwards: packets of pods, first ones of connections, in all directions."""
    near, other, underlay = inside[0], inside[-1], network.underlay.dev
    for version, pod, neighbor in _own_pods(network):
        # One of each device will do: what differs between peers is their address alone.
        for way in {one.dev: one for one in found_ways if one.version == version}.values():
            far = _far_pod(version, way.peer)
            if far is not None:
                yield "to other nodes", _flow(version, near, way.dev, pod, far)
                yield "from other nodes", _flow(version, way.dev, near, far, pod)
        if network.masquerade:
            outside = ip_address(_OUTSIDE[version])
            yield "to outside", _flow(version, near, underlay, pod, outside)
        # Bridged frames go through the same chains with br_netfilter.
        if network.fabric.wiring == "routed" or sysctl.read(_BRIDGED[version]) == "1":
            yield "between pods of this node", _flow(version, near, other, pod, neighbor)


def _own_pods(network: NetworkConfig) -> Iterator[tuple[Version, IPAddress, IPAddress]]:
    """Two addresses of each own subnet that pods have, or could have."""
    for subnet in network.lease.subnets:
        if subnet.num_addresses > 4:
            yield subnet.version, subnet[-3], subnet[-4]


def _flow(
    version: Version, iifname: str, oifname: str, source: IPAddress, target: IPAddress
) -> Flow:
    return Flow(
        version=version,
        iifname=iifname,
        oifname=oifname,
        source=source,
        target=target,
        protocol="tcp",
        sport=_PORTS[0],
        dport=_PORTS[1],
        target_type="unicast",
    )


def _far_pod(version: int, peer: Node) -> IPAddress | None:
    """An address that a pod of a peer has, or could have."""
    subnets = peer.lease.subnets if peer.lease is not None else ()
    own = [subnet for subnet in subnets if subnet.version == version]
    largest = max(own, key=lambda one: one.num_addresses, default=None)
    if largest is None:
        return None
    return largest[-3] if largest.num_addresses > 4 else largest[0]
