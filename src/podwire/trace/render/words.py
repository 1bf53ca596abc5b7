"""How packets, ends and causes are called, in every face.

What lives here: a few words for a packet's headers, in the terms of tcpdump and ping. What does
not: escaping, which depends on where the words go.
"""

from __future__ import annotations

from collections.abc import Sequence

from podwire.model.probe import Probe
from podwire.trace.model import (
    Arp,
    Cause,
    Endpoint,
    Ethernet,
    Header,
    Icmp,
    Ip,
    Packet,
    Place,
    Tcp,
    Tunnel,
    Udp,
    Vxlan,
)

_ICMP4 = {
    0: "echo reply",
    3: "unreachable",
    4: "source quench",
    5: "redirect",
    8: "echo request",
    11: "time exceeded",
    12: "parameter problem",
}
#: RFC 792, RFC 1122 section 3.2.2.1, RFC 1812 section 5.2.7.1.
_UNREACHABLE4 = {
    0: "network unreachable",
    1: "host unreachable",
    2: "protocol unreachable",
    3: "port unreachable",
    4: "fragmentation needed",
    9: "network prohibited",
    10: "host prohibited",
    13: "prohibited",
}
_ICMP6 = {
    1: "unreachable",
    2: "packet too big",
    3: "time exceeded",
    4: "parameter problem",
    128: "echo request",
    129: "echo reply",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
    137: "redirect",
}
#: RFC 4443 section 3.1.
_UNREACHABLE6 = {
    0: "no route",
    1: "prohibited",
    3: "address unreachable",
    4: "port unreachable",
    5: "source refused",
    6: "route refused",
}
_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6"}

_CAUSES = {
    Cause.NO_LEASE: "no lease",
    Cause.WRONG_ROUTE: "wrong route",
    Cause.NO_FDB: "no FDB entry",
    Cause.WRONG_FDB: "wrong FDB entry",
    Cause.NO_NEIGHBOR: "no neighbour entry",
    Cause.WRONG_NEIGHBOR: "wrong neighbour entry",
    Cause.NFT: "nft rule",
    Cause.RP_FILTER: "reverse-path filter",
    Cause.TOO_BIG: "too big for the MTU",
    Cause.LINK_DOWN: "interface down",
    Cause.LINK_MISSING: "interface missing",
    Cause.UNDERLAY: "lost on the underlay",
    Cause.NOT_IN_USE: "address not in use",
    Cause.TTL: "TTL used up",
    Cause.AGENT_AWAY: "not seen further",
    Cause.SOCKET: "not sent",
    Cause.UNKNOWN: "cause unknown",
}


def cause_words(cause: Cause) -> str:
    """A cause in a word or three: `no route`, `reverse-path filter`."""
    return _CAUSES.get(cause, cause.value.replace("-", " "))


def ip_of(headers: Sequence[Header]) -> Ip | None:
    """The first IP header."""
    return next((header for header in headers if isinstance(header, Ip)), None)


def ethernet_of(headers: Sequence[Header]) -> Ethernet | None:
    """The first Ethernet header."""
    return next((header for header in headers if isinstance(header, Ethernet)), None)


def outer(packet: Packet) -> tuple[Header, ...]:
    """The headers up to and with the last tunnel's; none where there is no encapsulation."""
    return packet.headers[: len(packet.headers) - len(packet.inner)]


def inner_size(packet: Packet) -> int:
    """Bytes of the inner frame; of the whole packet where it is not encapsulated.

    Taken from the inner IP header, so that a capture cut short does not matter.
    """
    if not packet.encapsulated:
        return packet.size
    ip = ip_of(packet.inner)
    link = 14 if ethernet_of(packet.inner) else 0
    return link + ip.length if ip else max(0, packet.size - 50)


def addresses(headers: Sequence[Header]) -> str:
    """`10.244.1.2 → 10.244.2.2`; of ARP, who asks for whom; empty for what has neither."""
    for header in headers:
        if isinstance(header, Ip):
            return f"{header.source} → {header.target}"
        if isinstance(header, Arp):
            return f"{header.source_ip} → {header.target_ip}"
    return ""


def summary(headers: Sequence[Header]) -> str:
    """What the packet is, above its addresses: `ICMP echo request id 7 seq 1`, `TCP S 4001→80`."""
    ip: Ip | None = None
    for header in headers:
        match header:
            case Ip():
                ip = header
            case Icmp():
                return _icmp(header, 6 if ip is not None and ip.version == 6 else 4)
            case Tcp():
                return f"TCP {header.flags or '.'} {header.source_port}→{header.target_port}"
            case Udp():
                after = headers[headers.index(header) + 1 :]
                if after and isinstance(after[0], Vxlan):
                    return f"VXLAN {after[0].vni}"
                if after and isinstance(after[0], Tunnel):
                    return "UDP tunnel"
                return f"UDP {header.source_port}→{header.target_port}"
            case Arp():
                return _arp(header)
    if ip is None:
        return ""
    if ip.offset:
        return f"{_protocol(ip.protocol)} fragment at {ip.offset}"
    return _protocol(ip.protocol)


def _protocol(number: int) -> str:
    return _PROTOCOLS.get(number, f"protocol {number}")


def _arp(header: Arp) -> str:
    if header.operation == 1:
        return f"ARP who has {header.target_ip}?"
    if header.operation == 2:
        return f"ARP {header.source_ip} is at {header.source_mac}"
    return f"ARP operation {header.operation}"


def _icmp(header: Icmp, version: int) -> str:
    name = "ICMPv6" if version == 6 else "ICMP"
    names = _ICMP6 if version == 6 else _ICMP4
    kind = names.get(header.type, f"type {header.type}")
    if (version, header.type) == (4, 3):
        kind = _UNREACHABLE4.get(header.code, kind)
    elif (version, header.type) == (6, 1):
        kind = _UNREACHABLE6.get(header.code, kind)
    words = [name, kind]
    if header.id is not None:
        words.append(f"id {header.id}")
    if header.sequence is not None:
        words.append(f"seq {header.sequence}")
    if header.mtu is not None:
        words.append(f"MTU {header.mtu}")
    if header.target is not None:
        words.append(f"for {header.target}")
    if header.quoted:
        words.append(f"about {addresses(header.quoted)}".rstrip())
    return " ".join(words)


def ip_flags(ip: Ip) -> str:
    """`DF`, or which fragment it is; IPv6 has no DF to speak of."""
    if ip.more_fragments and not ip.offset:
        return "first fragment"
    return "DF" if ip.dont_fragment and ip.version == 4 else ""


def place_words(place: Place) -> str:
    """`node1`, or `pod:default/pod1 on node1`."""
    return f"{place.name} on {place.node}" if place.pod and place.node else place.name


def endpoint_words(end: Endpoint) -> str:
    """`pod default/pod1 10.244.1.2 on node1`, `node node1 172.18.0.11`, `192.0.2.80`."""
    if not end.name:
        return end.ip
    on = f" on {end.node}" if end.node and end.kind == "pod" else ""
    return f"{end.kind} {end.name} {end.ip}{on}"


def remedy_lines(remedy: str) -> list[str]:
    """Its lines; the comment behind a command on one of its own, for the command to stay whole."""
    return [
        f"{mark}{part}"
        for line in remedy.splitlines()
        for mark, part in zip(("", "# "), line.split("  # ", 1), strict=False)
    ]


def probe_words(probe: Probe) -> str:
    """`ICMP echo`, `TCP to port 80`, with the size where it was asked for."""
    what = "ICMP echo" if probe.protocol == "icmp" else probe.protocol.upper()
    if probe.port is not None and probe.protocol != "icmp":
        what += f" to port {probe.port}"
    if probe.size is not None:
        what += f", {probe.size} bytes"
    return what


def duration(us: float) -> str:
    """Microseconds as a person says them: `71.4 µs`, `8.21 ms`, `1.20 s`."""
    if us < 1000:
        return f"{us:.1f} µs"
    if us < 1_000_000:
        return f"{us / 1000:.2f} ms"
    return f"{us / 1_000_000:.2f} s"
