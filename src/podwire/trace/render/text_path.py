"""One path as lines: places as groups, in them the hops, in columns.

What lives here: the columns of a hop and what hangs below it. What does not: the rest of a trace
(`text.py`).

    ┌ pod:default/pod1 on node1
    │   1 out eth0                     98   64  10.244.1.2 → 10.244.2.2
    │       pair   veth95dcb0817dc on node1
    ├ node1
    │   5 out eth0            +6.2    148   64  172.18.0.11 → 172.18.0.12  VXLAN 1
    │                                  98   63  └ 10.244.1.2 → 10.244.2.2
    │     + in VXLAN (VNI 1), 98 → 148 bytes
    ┊ underlay
    ├ node2
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from podwire.trace.model import Change, Decision, Header, Hop, Outcome, Path, Round, Trace
from podwire.trace.render import words
from podwire.trace.render.ink import (
    Line,
    Span,
    cells,
    clean,
    clip,
    fill,
    length,
    pad,
)
from podwire.trace.render.ink import words as split

_BAR = Span("│ ", "dim")
#: Below a hop: what changed starts here, what decided two columns on.
_UNDER = 6
_KIND = 7
_CHANGE_MARKS = {"encapsulated": "+", "decapsulated": "−"}


class PathText:
    """Draws the paths of a trace, which share their columns."""

    def __init__(self, trace: Trace, width: int) -> None:
        self._trace = trace
        self._width = width
        names = (
            cells(clean(hop.interface))
            for one in trace.rounds
            for path in (one.request, one.reply)
            if path is not None
            for hop in path.hops
        )
        self._name = min(max(names, default=0), 15)
        self._name = max(self._name, 9)
        #: Where the packet's column begins.
        self._packet = 2 + 3 + 5 + self._name + 7 + 7 + 5 + 2

    def full(self, title: str, one: Round, path: Path) -> list[Line]:
        """Every hop, with what changed and what decided."""
        lines = self._title(title, path)
        previous: Hop | None = None
        for index, hops in groupby(path.hops, key=lambda hop: hop.place):
            lines += self._enter(index, previous)
            for hop in hops:
                lines += self._hop(hop, previous)
                previous = hop
        return lines + self._end(one, path)

    def compact(self, title: str, one: Round, path: Path) -> list[Line]:
        """A line for each place: its interfaces, and the packet as it left it."""
        lines = self._title(title, path)
        groups = [(index, list(hops)) for index, hops in groupby(path.hops, lambda hop: hop.place)]
        previous: Hop | None = None
        for at, (index, hops) in enumerate(groups):
            last = hops[-1]
            bar = "┌ " if at == 0 else "└ " if at == len(groups) - 1 and path.arrived else "├ "
            if previous is not None and self._node(previous.place) != self._node(index):
                lines.append([Span("┊ underlay", "dim")])
            numbers = f"{hops[0].number}–{last.number}" if len(hops) > 1 else f"{last.number}"
            lines += self._columns(
                [Span(bar, "dim"), Span(pad(numbers, 6), "dim"), *self._place_name(index)],
                self._duration(hops, previous),
                f"{last.packet.size}",
                self._ttl(last),
                [Span(" → ".join(clean(hop.interface) for hop in hops))],
            )
            for hop in hops:
                changes = [
                    change
                    for change in hop.changes
                    if change.kind in ("source-nat", "target-nat", "fragmented")
                ]
                lines += self._changes(changes)
            previous = last
        return lines + ([] if path.arrived else self._end(one, path))

    # --- around the hops ----------------------------------------------------------------------

    def _title(self, title: str, path: Path) -> list[Line]:
        first = path.hops[0].packet
        ip = words.ip_of(first.inner)
        flags = words.ip_flags(ip) if ip is not None else ""
        what = [Span(clean(text)) for text in (words.summary(first.inner), flags)]
        labels = f"{'+µs':>7}{'bytes':>7}{'TTL':>5}  "
        lead: Line = [Span(pad(title, self._packet - len(labels)), "bold"), Span(labels, "dim")]
        first_line, *rest = fill(what, self._room, gap=2) or [[]]
        blank = Span(" " * self._packet)
        return [[*lead, *first_line], *([blank, *line] for line in rest)]

    def _enter(self, index: int, previous: Hop | None) -> list[Line]:
        """The line of a place, above it the one that says how the packet got to another node."""
        place = self._trace.places[index]
        name = Span(clean(words.place_words(place)), "place")
        if previous is None:
            return self._labelled([Span("┌ ", "dim")], [name])
        lines: list[Line] = []
        if self._node(previous.place) != place.node:
            lines += self._gap(previous, place.node)
        return lines + self._labelled([Span("├ ", "dim")], [name])

    def _gap(self, previous: Hop, node: str) -> list[Line]:
        left = self._trace.places[previous.place]
        text = f"underlay, {left.node} to {node}"
        right = next(place for place in self._trace.places if place.node == node)
        if left.clock != right.clock:
            text += "; their clocks can't be compared"
        return self._labelled([Span("┊ ", "dim")], split(clean(text), "dim"))

    def _end(self, one: Round, path: Path) -> list[Line]:
        """What stands below the last hop: arrived, lost, or gone out of sight."""
        if path.arrived:
            return [[Span("└ ", "dim"), Span("✓ arrived", "good")]]
        if one.outcome is Outcome.DROPPED:
            finding = one.finding
            text = f"✗ {words.cause_words(finding.cause)}" if finding is not None else "✗ lost"
            if finding is not None and finding.kernel_reason:
                text += f" ({finding.kernel_reason})"
            return self._labelled([Span("└ ", "dim")], split(clean(text), "bad"))
        ip = words.ip_of(path.hops[-1].packet.inner)
        text = f"on to {ip.target}, out of sight" if ip else "on, out of sight"
        return self._labelled([Span("┊ ", "dim")], split(clean(text), "dim"))

    def _labelled(self, lead: Line, units: list[Span]) -> list[Line]:
        lines = fill(units, self._width - length(lead))
        return [[*(lead if at == 0 else [_BAR]), *line] for at, line in enumerate(lines)]

    def _node(self, index: int) -> str:
        return self._trace.places[index].node

    def _place_name(self, index: int) -> Line:
        room = self._packet - 2 - 20 - 2 - 6
        return [Span(clip(clean(self._trace.places[index].name), room), "place")]

    # --- a hop --------------------------------------------------------------------------------

    def _hop(self, hop: Hop, previous: Hop | None) -> list[Line]:
        kinds = {change.kind for change in hop.changes}
        outer = words.outer(hop.packet)
        headers = outer or hop.packet.headers
        said = previous.packet.inner if previous is not None else hop.packet.inner
        lead: Line = [
            _BAR,
            Span(f"{hop.number:>3} ", "bold"),
            Span(f"{hop.direction:<3} ", "dim"),
            Span(clip(clean(hop.interface), self._name), "bold"),
        ]
        resized = kinds & {"encapsulated", "decapsulated", "size", "fragmented"}
        lines = self._columns(
            lead,
            self._since(hop, previous),
            f"{hop.packet.size}",
            self._ttl(hop, headers),
            self._flow(headers, previous is None or bool(outer), said, kinds),
            bytes_style="changed" if resized else "",
            ttl_style="changed" if "ttl" in kinds and not outer else "",
        )
        if outer:
            lines += self._columns(
                [_BAR],
                "",
                f"{words.inner_size(hop.packet)}",
                self._ttl(hop, hop.packet.inner),
                self._flow(hop.packet.inner, False, said, kinds, "└ "),
            )
        ethernet = words.ethernet_of(hop.packet.headers)
        if previous is None and ethernet is not None:
            lines += self._below("MACs", f"{ethernet.source} → {ethernet.target}")
        lines += self._changes(list(hop.changes))
        for decision in hop.decisions:
            lines += self._decision(decision)
        return lines

    @property
    def _room(self) -> int:
        return self._width - self._packet

    def _columns(
        self,
        lead: Line,
        since: str,
        size: str,
        ttl: str,
        packet: list[Span],
        *,
        bytes_style: str = "",
        ttl_style: str = "",
    ) -> list[Line]:
        start = self._packet - 21
        first, *rest = fill(packet, self._room, gap=2) or [[]]
        line: Line = [
            *lead,
            Span(" " * max(0, start - length(lead))),
            Span(f"{since:>7}", "dim"),
            Span(f"{size:>7}", bytes_style),
            Span(f"{ttl:>5}", ttl_style),
            Span("  "),
            *first,
        ]
        return [line, *self._continued(rest)]

    def _continued(self, lines: list[Line]) -> list[Line]:
        return [[_BAR, Span(" " * (self._packet - 2)), *line] for line in lines]

    def _since(self, hop: Hop, previous: Hop | None) -> str:
        return "" if previous is None else _plus(hop.since_us)

    def _duration(self, hops: list[Hop], previous: Hop | None) -> str:
        """From when the packet left the place before until it left this one."""
        times = [hop.since_us for hop in (hops if previous is not None else hops[1:])]
        if not times:
            return ""
        known = [us for us in times if us is not None]
        return _plus(sum(known) if len(known) == len(times) else None)

    def _ttl(self, hop: Hop, headers: tuple[Header, ...] | None = None) -> str:
        ip = words.ip_of(hop.packet.inner if headers is None else headers)
        return f"{ip.ttl}" if ip is not None else ""

    def _flow(
        self,
        headers: tuple[Header, ...],
        summary: bool,
        before: tuple[Header, ...],
        kinds: set[str],
        mark: str = "",
    ) -> list[Span]:
        """The addresses; what the packet is only where that is news."""
        translated = "source-nat" in kinds or "target-nat" in kinds
        what = words.summary(headers)
        units = [Span(mark + clean(words.addresses(headers)), "changed" if translated else "")]
        if summary and what.startswith("VXLAN"):
            units.append(Span(clean(what), "changed" if "encapsulated" in kinds else ""))
        elif not what.startswith("VXLAN") and what != words.summary(before):
            units.append(Span(clean(what)))
        return [unit for unit in units if unit.text]

    def _changes(self, changes: list[Change]) -> list[Line]:
        lines: list[Line] = []
        for mark, texts in _by_mark(changes):
            listed = [f"{clean(text)}," for text in texts[:-1]] + [clean(texts[-1])]
            lines += self._marked(mark, listed, "changed")
        return lines

    def _decision(self, decision: Decision) -> list[Line]:
        """`route  10.244.2.0/24 via …   because Node/node2 leases 10.244.2.0/24`."""
        why = f"because {decision.why}" if decision.why is not None else ""
        lines = self._below(decision.kind, decision.text, why)
        if decision.problem is not None:
            lines += self._marked("✗", [clean(decision.problem.text)], "bad")
        return lines

    def _below(self, kind: str, text: str, why: str = "") -> list[Line]:
        lead: Line = [
            _BAR,
            Span(" " * _UNDER),
            Span(pad(clip(clean(kind), _KIND - 1), _KIND), "dim"),
        ]
        room = self._width - _UNDER - 2 - _KIND
        found = fill([Span(clean(text), "dim"), Span(clean(why), "dim")], room, gap=3)
        blank: Line = [_BAR, Span(" " * (_UNDER + _KIND))]
        return [[*(lead if at == 0 else blank), *line] for at, line in enumerate(found)]

    def _marked(self, mark: str, texts: list[str], style: str) -> list[Line]:
        units = [Span(text, style) for text in texts]
        lines = fill(units, self._width - _UNDER - 2)
        leads = [Span(f"{mark} " if at == 0 else "  ", style) for at in range(len(lines))]
        indent = Span(" " * (_UNDER - 2))
        return [[_BAR, indent, lead, *line] for lead, line in zip(leads, lines, strict=True)]


def _plus(us: float | None) -> str:
    """Microseconds since the hop before, in 7 columns: long ones say their unit."""
    if us is None:
        return "–"
    if abs(us) < 100:
        return f"{us:+.1f}"
    if abs(us) < 1e5:
        return f"{us:+.0f}"
    return f"{us / 1e3:+.0f}ms" if abs(us) < 9.9995e6 else f"{us / 1e6:+.0f}s"


def _by_mark(changes: list[Change]) -> Iterator[tuple[str, list[str]]]:
    """Changes of one mark stand on one line: `+` into a tunnel, `−` out of it, `Δ` the rest."""
    for mark in ("+", "−", "Δ"):
        texts = [one.text for one in changes if _CHANGE_MARKS.get(one.kind, "Δ") == mark]
        if texts:
            yield mark, texts
