"""A Trace as a picture (SVG): for a page, a talk or a book.

What lives here: the parts in their order, title, legend and what is said of a failure. What does
not: which things are drawn (`scene.py`), where (`layout.py`), how (`drawing.py`, `packets.py`,
`canvas.py`).

The picture is one file without anything from elsewhere, light or dark as the reader's system is,
and the same for the same trace.
"""

from __future__ import annotations

from podwire.trace.model import Outcome, Round, Trace
from podwire.trace.render import words
from podwire.trace.render.svg.canvas import Canvas, number, width, wrap
from podwire.trace.render.svg.drawing import draw
from podwire.trace.render.svg.layout import MARGIN, Layout
from podwire.trace.render.svg.packets import draw_packets
from podwire.trace.render.svg.scene import paths, scene

_MARKS = {
    Outcome.REPLIED: ("✓", "g"),
    Outcome.REFUSED: ("!", "q"),
    Outcome.DELIVERED: ("!", "q"),
    Outcome.UNANSWERED: ("?", "q"),
    Outcome.DROPPED: ("✗", "x"),
}


def render_svg(trace: Trace) -> str:
    """The trace as an SVG document: the first round that failed, else the first one."""
    failed = (one for one in trace.rounds if one.outcome is not Outcome.REPLIED)
    shown = next(failed, trace.rounds[0] if trace.rounds else None)
    at = Layout(scene(trace, shown))
    canvas = Canvas()
    _title(canvas, trace, shown, at.width)
    draw(canvas, at)
    y = _legend(canvas, at, at.bottom + 26)
    y = draw_packets(canvas, trace, shown, y + 24, at.width)
    y = _failure(canvas, shown, y, at.width)
    return canvas.document(at.width, y + 4, _name(trace), _description(trace, shown))


def _name(trace: Trace) -> str:
    return f"{words.endpoint_words(trace.source)} → {words.endpoint_words(trace.target)}"


def _description(trace: Trace, shown: Round | None) -> str:
    """The way in words, for those who don't see it."""
    parts = [f"{trace.verdict}."]
    for what, path in zip(("The request", "The reply"), paths(shown), strict=False):
        if path.hops:
            hops = ", ".join(
                f"{hop.number} {trace.places[hop.place].name} {hop.interface} {hop.direction}"
                for hop in path.hops
            )
            parts.append(f"{what} was seen at: {hops}.")
    return " ".join(parts)


def _title(canvas: Canvas, trace: Trace, shown: Round | None, wide: float) -> None:
    source, target = (f"{end.name or end.ip}" for end in (trace.source, trace.target))
    probe = words.probe_words(trace.probe)
    room = wide - 2 * MARGIN - width(probe, "text") - 24
    canvas.text(MARGIN, 34, f"{source} → {target}", "title", room=room)
    canvas.text(wide - MARGIN, 34, probe, "text", "m", anchor="end")
    mark, ink = _MARKS[shown.outcome] if shown is not None else ("✗", "x")
    canvas.text(MARGIN, 58, mark, "name", ink)
    canvas.text(MARGIN + 18, 58, trace.verdict, "text", "m", room=wide - 2 * MARGIN - 18)


def _legend(canvas: Canvas, at: Layout, y: float) -> float:
    if not any(lane.path.hops for lane in at.lanes):
        return y - 30
    x = MARGIN
    for lane in at.lanes:
        if not lane.path.hops:
            continue
        canvas.path(f"M{number(x)} {number(y - 4)}h34", f"way {lane.name}")
        x += 42 + canvas.text(x + 42, y, lane.name, "small", "m") + 22
    canvas.text(x, y, "numbers: where the packet was seen, in order", "small", "m")
    if at.scene.round is not None and at.scene.round.rtt_us is not None:
        rtt = f"round trip {words.duration(at.scene.round.rtt_us)}"
        canvas.text(at.width - MARGIN, y, rtt, "smallb", "t", anchor="end")
    return y


def _failure(canvas: Canvas, shown: Round | None, y: float, wide: float) -> float:
    """What is known of a failure, below everything."""
    finding = shown.finding if shown is not None else None
    if finding is None:
        return y + 12
    room = wide - 2 * MARGIN - 44
    ink = _MARKS[shown.outcome][1] if shown is not None else "x"
    lines = [(f"{words.cause_words(finding.cause)}: {finding.where}", "name", ink)]
    lines += [(line, "text", "t") for line in wrap(finding.text, "text", room, 3)]
    if finding.kernel_reason:
        lines.append((f"the kernel dropped it for {finding.kernel_reason}", "small", "m"))
    if finding.why is not None:
        lines.append((f"wanted because {finding.why}", "small", "m"))
    for remedy in words.remedy_lines(finding.remedy):
        lines += [(line, "codeb", "t") for line in wrap(remedy, "codeb", room, 3)]
    high = 20 * len(lines) + 18
    canvas.rect(MARGIN, y, wide - 2 * MARGIN, high, "panel" if ink == "x" else "remark", 8)
    canvas.rect(MARGIN, y, 5, high, ink, 2)
    for at, (text, font, colour) in enumerate(lines):
        canvas.text(MARGIN + 22, y + 26 + 20 * at, text, font, colour, room=room)
    return y + high + 12
