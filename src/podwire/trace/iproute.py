"""What the kernel answers, in the words of `ip` and `bridge`, and the commands that show the same.

What lives here: text only. What does not: questions and conclusions. Names of interfaces come from
whoever asked, since the kernel's answers have but their indexes. They may hold anything but blanks
and `/`, and commands are pasted: there they are quoted.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from shlex import quote

from podwire.kernel.observe.lookup_messages import (
    ROUTE_TYPES,
    RTN_UNICAST,
    FibEntry,
    NeighborAnswer,
)
from podwire.model.state import IPAddress, IPNetwork, format_mac

Names = Callable[[int], str]

_TABLES = {253: "default", 254: "main", 255: "local"}
#: /etc/iproute2/rt_protos.
_PROTOCOLS = {
    1: "redirect",
    2: "kernel",
    3: "boot",
    4: "static",
    8: "gated",
    9: "ra",
    11: "zebra",
    12: "bird",
    16: "dhcp",
    17: "mrouted",
    18: "keepalived",
    42: "babel",
    186: "bgp",
    187: "isis",
    188: "ospf",
    189: "rip",
    192: "eigrp",
}
#: Who that usually is, for people; others are called by their number.
_MAKERS = {
    2: "the kernel, for an address of the interface",
    3: "whoever ran `ip route` by hand or at boot",
    4: "the administrator (proto static)",
    9: "a router's advertisement (RA)",
    11: "a routing daemon (zebra, FRR)",
    12: "a routing daemon (BIRD)",
    16: "a DHCP client",
    80: "Calico (proto 80)",
    112: "Podwire (proto 112)",
    186: "a routing daemon (BGP)",
}


def protocol_name(protocol: int) -> str:
    """`kernel`, `static`, `bird`, or the number."""
    return _PROTOCOLS.get(protocol, str(protocol))


def maker(protocol: int) -> str:
    """Who makes routes of this protocol, in words."""
    return _MAKERS.get(protocol) or f"proto {protocol_name(protocol)}"


def prefix_text(prefix: IPNetwork) -> str:
    """`default`, a host's bare address, or `10.244.2.0/24`."""
    if prefix.prefixlen == 0:
        return "default"
    whole = prefix.prefixlen == prefix.max_prefixlen
    return str(prefix.network_address) if whole else str(prefix)


def route_text(entry: FibEntry, names: Names) -> str:
    """A table's entry as `ip route show` prints it."""
    words = [] if entry.kind == RTN_UNICAST else [ROUTE_TYPES.get(entry.kind, str(entry.kind))]
    words.append(prefix_text(entry.dst))
    if entry.hops:
        words += [_hop("nexthop ", ifindex, via, names) for ifindex, via in entry.hops]
    elif entry.ifindex and entry.kind not in (6, 7, 8, 9):
        words.append(_hop("", entry.ifindex, entry.via, names))
    if entry.table != 254:
        words.append(f"table {_TABLES.get(entry.table, entry.table)}")
    words.append(f"proto {protocol_name(entry.protocol)}")
    if entry.kind == RTN_UNICAST and entry.src:
        words.append(f"src {ip_address(entry.src)}")
    if entry.metric:
        words.append(f"metric {entry.metric}")
    if entry.mtu:
        words.append(f"mtu {entry.mtu}")
    if entry.onlink:
        words.append("onlink")
    return " ".join(words)


def _hop(head: str, ifindex: int, via: bytes, names: Names) -> str:
    by = f"via {ip_address(via)} " if via else ""
    return f"{head}{by}dev {names(ifindex)}"


def way_text(dev: str, via: bytes) -> str:
    """`via 10.244.2.0 dev flannel.1`, or `dev cni0` for what is on the link."""
    return f"via {ip_address(via)} dev {dev}" if via else f"dev {dev}"


def neighbor_text(ip: IPAddress, dev: str, answer: NeighborAnswer | None) -> str:
    """An entry as `ip neigh show` prints it; what there is instead where there is none."""
    if answer is None:
        return f"{ip} dev {dev}: no entry"
    mac = f" lladdr {format_mac(answer.mac)}" if answer.mac else ""
    return f"{ip} dev {dev}{mac} {answer.state_name}"


def route_command(
    dst: IPAddress, src: IPAddress | None = None, iif: str = "", mark: int = 0
) -> str:
    words = [f"ip route get {dst}"]
    words += [f"from {src}"] if src is not None else []
    words += [f"iif {quote(iif)}"] if iif else []
    words += [f"mark {mark:#x}"] if mark else []
    return " ".join(words)


def neighbor_command(ip: IPAddress, dev: str) -> str:
    return f"ip neigh show {ip} dev {quote(dev)}"


def tunnel_fdb_command(mac: bytes, dev: str) -> str:
    return f"bridge fdb get {format_mac(mac)} dev {quote(dev)} self"


def bridge_fdb_command(mac: bytes, bridge: str) -> str:
    return f"bridge fdb get {format_mac(mac)} br {quote(bridge)}"


def guard_command(dev: str) -> str:
    return f"tc filter show dev {quote(dev)} ingress"


def link_command(dev: str) -> str:
    return f"ip -d link show {quote(dev)}"
