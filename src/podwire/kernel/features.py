"""Which of the kernel's features are there: tried out, in a namespace that ends with the attempt.

Lists of modules say nothing about what is built in, blocked or loaded on demand; so each feature
is used once, as the agent uses it, in a new network namespace of a thread of its own. Nothing is
left, and nothing of the node's is touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from functools import partial
from ipaddress import ip_address

import msgspec

from podwire.errors import PodwireError, UnsupportedError
from podwire.kernel import guards, link_messages, netns
from podwire.kernel.guards import Guards, GuardValue
from podwire.kernel.link_queries import find_link
from podwire.kernel.netlink import NetlinkSocket, kernel_error
from podwire.kernel.nft_context import Nft
from podwire.kernel.observe.drops import DropTap
from podwire.kernel.observe.frames import FrameTap
from podwire.kernel.observe.nft_trace import NftTap
from podwire.kernel.observe.probe_filter import probe_filter
from podwire.kernel.tun import create_tun
from podwire.model.fabric import DEFAULT, Fabric
from podwire.model.probe import ProbeMatch
from podwire.model.state import Bridge, Link, Veth, Vxlan, Why

_WHY = Why("Feature", "is tried out")
_PORT = 8472
_VETH = Veth(peer="try-peer", peer_mac=bytes.fromhex("020000000001"))
_VXLAN = Vxlan(vni=1, port=_PORT, local=ip_address("127.0.0.1"), dev="lo")

#: nft's features by what they are for, each a table of its own.
_TABLES = {
    "nftables": "chain c { type filter hook forward priority 0; }",
    "nftables sets": (
        "set s { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; }\n"
        "chain c { type filter hook forward priority 0; ip saddr @s counter\n }"
    ),
    "nftables NAT": (
        "chain c { type nat hook postrouting priority 100; masquerade fully-random\n }"
    ),
    "conntrack in nftables": (
        "chain c { type filter hook prerouting priority -300; udp dport 8472 notrack\n }\n"
        "chain d { type filter hook forward priority 0; ct state established accept\n }"
    ),
}
#: What guards routed pods.
_ROUTES = "chain c { type filter hook prerouting priority -300; fib saddr . iif oif 0 drop\n }"
_GUARD = GuardValue(True, bytes.fromhex("020000000001"), (ip_address("192.0.2.1"),))
#: Packets that there are none of.
_MATCH = ProbeMatch(protocol="icmp", source="192.0.2.1", target="192.0.2.2", ident=1)


class Feature(msgspec.Struct, frozen=True):
    """`missing` is the kernel's refusal, empty where the feature is there. `without` is what a
    trace then does not do."""

    name: str
    missing: str = ""
    without: str = ""


def network_features(fabric: Fabric = DEFAULT) -> list[Feature]:
    """What this pod network is made of: kinds of links, and nftables. Takes some 30 ms.

    Raises KernelError where there can be no new namespace to try them in.
    """
    return netns.in_new_namespace(partial(_try_network, fabric))


def guard_feature() -> Feature:
    """Whether pods' ports can have programs of their own (`podwire.kernel.guards`).

    Raises as `network_features`.
    """
    return netns.in_new_namespace(partial(_attempt, "eBPF at pods' ports", _guard))


def trace_features() -> list[Feature]:
    """What tracing takes: to see packets, what rules judge them, and why they are dropped.

    Raises as `network_features`.
    """
    return [
        _attempt("packet sockets", _tap_frames, "can't see packets"),
        netns.in_new_namespace(
            partial(
                _attempt, "nftables trace", _trace_rules, "can't tell which rule drops a packet"
            )
        ),
        _attempt("drop reasons", _tap_drops, "can't tell why the kernel drops a packet"),
    ]


def _try_network(fabric: Fabric) -> list[Feature]:
    with NetlinkSocket() as sock:
        found = [_attempt(name, partial(make, sock)) for name, make in _links(fabric).items()]
    try:
        context = Nft()
    except PodwireError as error:
        return [*found, Feature("nftables", error.message)]
    try:
        tables = dict(_TABLES)
        if fabric.wiring == "routed":
            tables["routes in nftables"] = _ROUTES
        for number, (name, body) in enumerate(tables.items()):
            text = f"table inet t{number} {{\n{body}\n}}\n"
            found.append(_attempt(name, partial(context.run, text)))
    finally:
        context.close()
    return found


def _guard() -> None:
    """As at a pod's port: hung up, found again with its counters, and taken down."""
    loopback = 1
    with NetlinkSocket() as sock, Guards() as maker, Guards() as finder:
        if (failure := maker.add(sock, loopback, _GUARD)) is not None:
            raise kernel_error("hang a program to a link", failure)
        there = guards.guard_at(sock, loopback)
        if there is None or not there.lets_pass(_GUARD) or not finder.find():
            raise UnsupportedError("the program is not found again")
        maker.remove(sock, loopback)


def _tap_frames() -> None:
    FrameTap(None, probe_filter(_MATCH)).close()


def _tap_drops() -> None:
    DropTap(_MATCH).close()


def _trace_rules() -> None:
    # Where there are no tables, the tap has nothing to do.
    with closing(Nft()) as context:
        context.run("add table inet t")
    NftTap(None, _MATCH).close()


def _attempt(name: str, work: Callable[[], object], without: str = "") -> Feature:
    try:
        work()
    except (PodwireError, OSError) as error:
        missing = error.message if isinstance(error, PodwireError) else str(error)
        return Feature(name, missing, without)
    return Feature(name)


def _links(fabric: Fabric) -> dict[str, Callable[[NetlinkSocket], None]]:
    """How the links are made that a fabric consists of, by what they are called."""
    found: dict[str, Callable[[NetlinkSocket], None]] = {"veth": partial(_make, kind=_VETH)}
    if fabric.wiring == "bridge":
        found["bridge"] = partial(_make, kind=Bridge())
    if fabric.uses_vxlan:
        found["vxlan"] = partial(_make, kind=_VXLAN)
    if fabric.uses_vxlan and fabric.gbp:
        found["vxlan with GBP"] = _make_gbp
    if fabric.uses_udp:
        found["tun"] = partial(create_tun, name="try-tun")
    return found


def _make_gbp(sock: NetlinkSocket) -> None:
    """A kernel that has no such option makes the device without a word."""
    kind = msgspec.structs.replace(_VXLAN, gbp=True, vni=2, port=_PORT + 1)
    _make(sock, kind)
    made = find_link(sock, "try-vxlan")
    if made is None or made.vxlan is None or not made.vxlan.gbp:
        raise UnsupportedError("the device is made without it")


def _make(sock: NetlinkSocket, kind: Bridge | Veth | Vxlan) -> None:
    """Raises KernelError. Takes the place of one of its kind."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        what = type(kind).__name__.lower()
        link = Link(name=f"try-{what}", kind=kind, why=_WHY)
        if (before := find_link(sock, link.name)) is not None:
            sock.do(link_messages.delete_link(before.index), what=f"delete {link.name}")
        creation = link_messages.create_link(link, {"lo": 1}, peer_netns_fd=here)
        sock.do(creation, what=f"make a {what} link")
    finally:
        os.close(here)
