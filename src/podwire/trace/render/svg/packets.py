"""The packet as a diagram of its headers, at each place where it took another form.

What lives here: which sightings are worth a diagram, and the diagrams. What does not: the picture
of the path.

All diagrams share their columns, so that the inner headers of a packet in a tunnel stand below
those of the packet that was put into it. What differs from the diagram above is highlighted.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from podwire.trace.model import (
    Arp,
    Ethernet,
    Header,
    Hop,
    Icmp,
    Ip,
    Outcome,
    Payload,
    Round,
    Tcp,
    Trace,
    Tunnel,
    Udp,
    Vxlan,
)
from podwire.trace.render import words
from podwire.trace.render.svg.canvas import Canvas, number, width
from podwire.trace.render.svg.layout import MARGIN

_HEIGHT = 66.0
_HEADING = 20.0
_MOST = 4
#: The last header gets so much more room, if there is any.
_SPARE = 160.0
#: No header gets more, whatever is in it.
_WIDEST = 240.0
_FORMS = frozenset({"encapsulated", "source-nat", "target-nat", "fragmented", "size"})


@dataclass(frozen=True)
class Cell:
    """One header: its name, its length in bytes (0: not known) and its values, a line each."""

    name: str
    size: int
    values: tuple[str, ...]
    look: str

    @property
    def room(self) -> float:
        """What it takes to show everything."""
        heading = width(self.name, "smallb") + width(f"{self.size}", "small") + 26
        return max([heading, *(min(width(value, "code") + 16, _WIDEST) for value in self.values)])


def draw_packets(canvas: Canvas, trace: Trace, shown: Round | None, y: float, wide: float) -> float:
    """Draws the diagrams from `y` down; returns where they end."""
    hops = _telling(shown)
    forms = [
        (hop, _cells(words.outer(hop.packet), True), _cells(hop.packet.inner, False))
        for hop in hops
    ]
    if not forms:
        return y
    room = wide - 2 * MARGIN
    outer = _widths([form[1] for form in forms])
    inner = _widths([form[2] for form in forms])
    scale = min(1.0, room / max(1.0, sum(outer) + sum(inner)))
    outer, inner = [one * scale for one in outer], [one * scale for one in inner]
    if inner:
        inner[-1] += min(_SPARE, room - sum(outer) - sum(inner))
    left = MARGIN + sum(outer)
    right = left + sum(inner)
    above: dict[str, Cell] = {}
    previous: float | None = None
    for hop, out, ins in forms:
        x = left - sum(outer[len(outer) - len(out) :])
        if previous is not None:
            for guide in (left, right):
                canvas.path(f"M{number(guide)} {number(previous)}V{number(y + _HEADING)}", "guide")
        dot = "pdot" if _is_reply(shown, hop) else "qdot"
        _heading(canvas, trace, hop, min(x, wide / 2), y, wide - MARGIN, dot)
        y += _HEADING
        for cells, sizes, at in ((out, outer[len(outer) - len(out) :], x), (ins, inner, left)):
            for index, (cell, size) in enumerate(zip(cells, sizes, strict=False)):
                last = cells is ins and index == len(cells) - 1
                end = right if last else at + size
                _cell(canvas, cell, at, y, end - at, above.get(f"{cells is out} {cell.name}"))
                above[f"{cells is out} {cell.name}"] = cell
                at = end
        previous = y + _HEIGHT
        y += _HEIGHT + 18
    return y


def _telling(shown: Round | None) -> list[Hop]:
    """The first sighting, each that has another form, and the last where it arrived."""
    if shown is None or not shown.request.hops:
        return []
    hops = list(shown.request.hops)
    found = [hops[0]]
    found += [hop for hop in hops[1:] if any(one.kind in _FORMS for one in hop.changes)]
    if shown.request.arrived and hops[-1].packet != found[-1].packet:
        found.append(hops[-1])
    if shown.outcome is Outcome.REFUSED and shown.reply is not None and shown.reply.hops:
        found.append(shown.reply.hops[0])
    return found[:_MOST]


def _is_reply(shown: Round | None, hop: Hop) -> bool:
    return shown is not None and shown.reply is not None and hop in shown.reply.hops


def _heading(
    canvas: Canvas, trace: Trace, hop: Hop, x: float, y: float, end: float, dot: str
) -> None:
    place = trace.places[hop.place]
    text = f"{hop.number}"
    half = max(8.0, width(text, "num") / 2 + 5)
    canvas.rect(x, y - 2, 2 * half, 16, dot, 8)
    canvas.text(x + half, y + 10, text, "num", "n", anchor="middle")
    used = canvas.text(x + 2 * half + 8, y + 10, f"{hop.packet.size} bytes", "smallb", "t")
    where = f"at {place.pod or place.node}, {hop.interface}"
    x += 2 * half + used + 16
    canvas.text(x, y + 10, where, "small", "m", room=end - x)


def _cell(canvas: Canvas, cell: Cell, x: float, y: float, wide: float, before: Cell | None) -> None:
    canvas.rect(x, y, wide, _HEIGHT, cell.look, 4)
    used = canvas.text(x + 8, y + 17, cell.name, "smallb", "t", room=wide - 12)
    if cell.size and wide - used > 18 + width(f"{cell.size}", "small"):
        canvas.text(x + wide - 8, y + 17, f"{cell.size}", "small", "m", anchor="end")
    for at, value in enumerate(cell.values):
        changed = before is not None and value not in before.values
        font, ink = ("codeb", "q") if changed else ("code", "m")
        canvas.text(x + 8, y + 32 + 13.5 * at, value, font, ink, room=wide - 12)


def _widths(rows: list[list[Cell]]) -> list[float]:
    """Each column as wide as its widest cell; rows without cells don't count."""
    count = max((len(row) for row in rows), default=0)
    return [max(row[at].room for row in rows if at < len(row)) for at in range(count)]


def _cells(headers: tuple[Header, ...], outer: bool) -> list[Cell]:
    look = "under" if outer else "pod"
    cells = []
    for at, header in enumerate(headers):
        cells.append(_describe(header, headers[:at], headers[at + 1 :], look))
    return cells


def _describe(
    header: Header, before: tuple[Header, ...], after: tuple[Header, ...], look: str
) -> Cell:
    ip = next((one for one in reversed(before) if isinstance(one, Ip)), None)
    match header:
        case Ethernet():
            return Cell("Ethernet", 14, (header.source, f"→ {header.target}"), look)
        case Ip():
            size = 40 if header.version == 6 else 20
            flags = words.ip_flags(header)
            last = f"TTL {header.ttl}" + (f", {flags}" if flags else "")
            ends = (header.source, f"→ {header.target}")
            return Cell("IPv6" if header.version == 6 else "IP", size, (*ends, last), look)
        case Udp():
            ports = (f"{header.source_port}", f"→ {header.target_port}")
            return Cell("UDP", 8, ports, look)
        case Tcp():
            flags = f"[{header.flags}]"
            ports = (f"{header.source_port}", f"→ {header.target_port}")
            return Cell("TCP", _upper_size(ip, after), (*ports, flags), look)
        case Icmp():
            return _describe_icmp(header, ip, look)
        case Arp():
            return Cell("ARP", 28, (header.source_ip, f"→ {header.target_ip}"), look)
        case Vxlan():
            return Cell("VXLAN", 8, (f"VNI {header.vni}",), look)
        case Tunnel():
            return Cell("tunnel", 0, ("no header",), look)
        case Payload():
            return Cell("data", header.length, (), look)


def _describe_icmp(header: Icmp, ip: Ip | None, look: str) -> Cell:
    about = words.ip_of(header.quoted)
    bare = msgspec.structs.replace(header, quoted=(), id=None, sequence=None, mtu=None)
    name, _, kind = words.summary((*((ip,) if ip else ()), bare)).partition(" ")
    if about is None:
        echo = f"id {header.id} seq {header.sequence}" if header.id is not None else ""
        return Cell(name, 8, tuple(value for value in (kind, echo) if value), look)
    mtu = f", MTU {header.mtu}" if header.mtu is not None else ""
    quoted = (f"{kind}{mtu}", f"about {about.source}", f"→ {about.target}")
    return Cell(name, _upper_size(ip, ()), quoted, look)


def _upper_size(ip: Ip | None, after: tuple[Header, ...]) -> int:
    """The length of what is left of the packet between IP and its data."""
    if ip is None:
        return 0
    carried = sum(one.length for one in after if isinstance(one, Payload))
    return max(0, ip.length - (40 if ip.version == 6 else 20) - carried)
