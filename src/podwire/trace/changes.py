"""What became of a packet between two sightings: encapsulated, routed, translated, cut.

What lives here: comparing two decoded packets, header by header. What does not: who did it (the
decisions of the hop before say so). Pure.

Both have an inner part, which its ends see, and may have an outer one, which carries it. Parts are
compared with their like; that one of the packets has no outer part is a change of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from podwire.trace.model import Change, Ethernet, Header, Icmp, Ip, Packet, Tcp, Udp, Vxlan
from podwire.trace.render.words import ip_of

_ECHO_REPLIES = frozenset({0, 129})


def changes(before: Packet, after: Packet) -> tuple[Change, ...]:
    """From one hop to the next, the most telling first."""
    return tuple(_changes(before, after))


def crossed(
    before: Packet, after: Packet, *, router: str = "", encrypted: bool = False
) -> Iterator[Change]:
    """What more became of it between two nodes, where nobody looks.

    `router` is the address of the one that it was sent to, empty where that is not known.
    `encrypted`: it went by a tunnel that encrypts.
    """
    if encrypted:
        yield Change("unseen", "encrypted in between, where nobody can tell it from others")
        return
    old, new = ip_of(before.headers), ip_of(after.headers)
    if old is None or new is None or (old.source, old.target) != (new.source, new.target):
        return
    if (routers := old.ttl - new.ttl) > 0:
        who = "a router" if routers == 1 else f"{routers} routers"
        first = "" if routers == 1 else "the first "
        yield Change("router", f"through {who}" + (f", {first}{router}" if router else ""))


def _changes(before: Packet, after: Packet) -> Iterator[Change]:
    old, new = _part(before.inner), _part(after.inner)
    if after.encapsulated and not before.encapsulated:
        yield Change("encapsulated", _encapsulated(before, after))
    elif before.encapsulated and not after.encapsulated:
        yield Change("decapsulated", _decapsulated(before, after))
    yield from _translated(old, new)
    yield from _routed(old, new)
    yield from _resized(old, new)
    if before.encapsulated and after.encapsulated:
        outer_old, outer_new = _part(_outer(before)), _part(_outer(after))
        for change in (*_routed(outer_old, outer_new), *_resized(outer_old, outer_new)):
            yield Change(change.kind, f"outer {change.text}")
    elif after.encapsulated:
        outer = _part(_outer(after)).ip
        if outer is not None and outer.more_fragments:
            yield Change("fragmented", f"outer packet in fragments, the first {outer.length} bytes")


class _Part(NamedTuple):
    ethernet: Ethernet | None
    ip: Ip | None
    upper: Header | None


def _part(headers: tuple[Header, ...]) -> _Part:
    ethernet = next((one for one in headers if isinstance(one, Ethernet)), None)
    for at, header in enumerate(headers):
        if isinstance(header, Ip):
            return _Part(ethernet, header, headers[at + 1] if at + 1 < len(headers) else None)
    return _Part(ethernet, None, None)


def _outer(packet: Packet) -> tuple[Header, ...]:
    """The headers before those of the innermost frame."""
    return packet.headers[: len(packet.headers) - len(packet.inner)]


def _encapsulated(before: Packet, after: Packet) -> str:
    return f"in {_carrier(after)}, {before.size} → {after.size} bytes"


def _decapsulated(before: Packet, after: Packet) -> str:
    what = _carrier(before).partition(" (")[0]
    return f"out of {what}, {before.size} → {after.size} bytes"


def _carrier(packet: Packet) -> str:
    """What it is in: `VXLAN (VNI 1)`, `UDP (port 8285)`."""
    outer = _outer(packet)
    vxlan = next((one for one in outer if isinstance(one, Vxlan)), None)
    if vxlan is not None:
        return f"VXLAN (VNI {vxlan.vni})"
    udp = next((one for one in outer if isinstance(one, Udp)), None)
    return f"UDP (port {udp.target_port})" if udp is not None else "a tunnel"


def _translated(old: _Part, new: _Part) -> Iterator[Change]:
    if old.ip is None or new.ip is None:
        return
    addresses = (old.ip.source, new.ip.source), (old.ip.target, new.ip.target)
    ports = zip(_ports(old.upper), _ports(new.upper), strict=True)
    for side, (was, now), (port, mapped) in zip(
        ("source", "target"), addresses, ports, strict=True
    ):
        if port == mapped and was == now:
            continue
        text = f"{was} → {now}"
        if port != mapped:
            text = f"{_joined(was, port)} → {_joined(now, mapped)}"
        yield Change(f"{side}-nat", f"{side} {text}")


def _ports(upper: Header | None) -> tuple[str, str]:
    """The source's and the target's. An echo's identifier is that of who asked, as a port is."""
    match upper:
        case Udp() | Tcp():
            return str(upper.source_port), str(upper.target_port)
        case Icmp(id=int() as ident):
            return ("", f"id {ident}") if upper.type in _ECHO_REPLIES else (f"id {ident}", "")
    return "", ""


def _joined(address: str, port: str) -> str:
    if port.startswith("id"):
        return f"{address} {port}"
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _routed(old: _Part, new: _Part) -> Iterator[Change]:
    if old.ip is not None and new.ip is not None and old.ip.ttl != new.ip.ttl:
        yield Change("ttl", f"TTL {old.ip.ttl} → {new.ip.ttl}")
    if old.ethernet is not None and new.ethernet is not None:
        macs = (new.ethernet.source, new.ethernet.target)
        if macs != (old.ethernet.source, old.ethernet.target):
            yield Change("mac", f"MACs {macs[0]} → {macs[1]}")


def _resized(old: _Part, new: _Part) -> Iterator[Change]:
    if old.ip is None or new.ip is None:
        return
    if new.ip.more_fragments and not old.ip.more_fragments:
        yield Change("fragmented", f"in fragments, the first {new.ip.length} bytes")
    elif old.ip.more_fragments and not new.ip.more_fragments:
        yield Change("size", f"put together again: {new.ip.length} bytes")
    elif old.ip.length != new.ip.length:
        yield Change("size", f"{old.ip.length} → {new.ip.length} bytes")
    if old.ip.dont_fragment != new.ip.dont_fragment:
        yield Change("df", f"DF {'set' if new.ip.dont_fragment else 'cleared'}")
