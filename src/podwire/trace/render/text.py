"""A Trace for a terminal: one column of hops, top to bottom, in the order of time.

What lives here: how the parts follow each other, and the rounds' summary. What does not: a path's
hops (`text_path.py`), and widths, escaping and colour (`ink.py`).

    who to whom, with what
    Request, full: places as groups, in them the hops, below each what changed and what decided
    Reply, a line a place; full where it was lost or that is asked for
    the other rounds, a line each, and ping's statistics
    notes
    the verdict, before it what is known of a failure and the command that mends it

Each mark reads without colour: `Δ` changed, `+` put into a tunnel, `−` taken out of one, `✓`, `!`,
`?`, `✗`.
"""

from __future__ import annotations

from podwire.trace.model import Finding, Outcome, Round, Trace
from podwire.trace.render import words
from podwire.trace.render.ink import Line, Span, clean, fill, length, paint
from podwire.trace.render.ink import words as split
from podwire.trace.render.text_path import PathText

#: Narrower than this, lines are longer than asked for.
MIN_WIDTH = 60

_MARKS = {
    Outcome.REPLIED: Span("✓", "good"),
    Outcome.REFUSED: Span("!", "changed"),
    Outcome.DELIVERED: Span("!", "changed"),
    Outcome.UNANSWERED: Span("?", "changed"),
    Outcome.DROPPED: Span("✗", "bad"),
}


def render_text(trace: Trace, *, colour: bool, width: int = 100, full: bool = False) -> str:
    """The trace for a person, in lines of at most `width` columns (not fewer than 60).

    `full` shows the reply's hops as the request's, one by one.
    With `colour`, ANSI escape sequences highlight what the marks say too. Whatever a terminal
    would obey in names from outside is shown escaped.
    """
    width = max(width, MIN_WIDTH)
    shown = _most_telling(trace)
    parts = [_header(trace, width)]
    if shown is not None:
        parts += _round(trace, shown, width, full)
    if len(trace.rounds) > 1:
        parts.append(_rounds(trace, shown, width))
    if trace.notes:
        parts.append([line for note in trace.notes for line in _note(note, width)])
    if shown is not None and shown.finding is not None:
        parts.append(_finding(shown.finding, _MARKS[shown.outcome].style, width))
    parts.append(_verdict(trace, shown, width))
    return "\n".join(paint(part, colour=colour) for part in parts if part)


def _most_telling(trace: Trace) -> Round | None:
    """The round that is shown in full: the first that failed, else the first."""
    failed = (one for one in trace.rounds if one.outcome is not Outcome.REPLIED)
    return next(failed, trace.rounds[0] if trace.rounds else None)


def _header(trace: Trace, width: int) -> list[Line]:
    source = Span(clean(words.endpoint_words(trace.source)), "bold")
    target = Span(clean(words.endpoint_words(trace.target)), "bold")
    line: Line = [source, Span(" → "), target]
    lines = [line]
    if length(line) > width:
        lines = [
            *fill([source], width),
            *([Span("  → ", ""), *rest] for rest in fill([target], width - 4)),
        ]
    count = trace.probe.count
    about = f"{words.probe_words(trace.probe)}{f', {count} times' if count > 1 else ''}"
    return [*lines, *fill(split(clean(f"{about}, {trace.started}"), "dim"), width)]


def _round(trace: Trace, one: Round, width: int, full: bool) -> list[list[Line]]:
    path = PathText(trace, width)
    which = f" of probe {one.number}" if len(trace.rounds) > 1 else ""
    parts = []
    if one.request.hops:
        parts.append(path.full(f"Request{which}", one, one.request))
    if one.reply is not None and one.reply.hops:
        lost = not one.reply.arrived and one.outcome is Outcome.DROPPED
        draw = path.full if lost or full else path.compact
        parts.append(draw(f"Reply{which}", one, one.reply))
    return parts


def _rounds(trace: Trace, shown: Round | None, width: int) -> list[Line]:
    """A line for each round, and what ping says at its end."""
    lines: list[Line] = []
    for one in trace.rounds:
        text = one.outcome.value
        if one.rtt_us is not None:
            text += f" in {words.duration(one.rtt_us)}"
        elif one.finding is not None:
            text += f" at {one.finding.where}: {words.cause_words(one.finding.cause)}"
        above = "  (above)" if one is shown else ""
        found = fill([*split(clean(text)), *split(above, "dim")], width - 14)
        lead: Line = [_MARKS[one.outcome], Span(f" probe {one.number:<4} ")]
        lines += [
            [*(lead if at == 0 else [Span(" " * 14)]), *rest] for at, rest in enumerate(found)
        ]
    answered = [one for one in trace.rounds if one.outcome is Outcome.REPLIED]
    total = len(trace.rounds)
    lost = f"{100 * (total - len(answered)) / total:.0f} % lost"
    text = f"{total} probes, {len(answered)} answered, {lost}"
    times = [one.rtt_us for one in answered if one.rtt_us is not None]
    if times:
        low, mean, high = min(times), sum(times) / len(times), max(times)
        text += "; round trip min/avg/max " + "/".join(
            f"{us / 1000:.3f}" for us in (low, mean, high)
        )
        text += " ms"
    return [*lines, *fill(split(text), width)]


def _note(note: str, width: int) -> list[Line]:
    lines = fill(split(clean(note), "warn"), width - 6)
    return [
        [Span("note: " if at == 0 else "      ", "warn"), *line] for at, line in enumerate(lines)
    ]


def _finding(finding: Finding, style: str, width: int) -> list[Line]:
    """Why it failed, behind a bar of its own."""
    bar = Span("┃ ", style)
    title = f"{words.cause_words(finding.cause)}: {finding.where}"
    lines = fill(split(clean(title), style), width - 2)
    lines += fill(split(clean(finding.text)), width - 2)
    if finding.kernel_reason:
        lines += _labelled("kernel", f"dropped it for {finding.kernel_reason}", width - 2)
    for at, one in enumerate(finding.evidence):
        lines += _labelled("" if at else "seen", one, width - 2)
    if finding.why is not None:
        lines += _labelled("wanted", f"because {finding.why}", width - 2)
    for at, one in enumerate(words.remedy_lines(finding.remedy)):
        lines += _labelled("" if at else "remedy", one, width - 2, "command")
    return [[bar, *line] for line in lines]


def _labelled(label: str, text: str, width: int, style: str = "") -> list[Line]:
    return [
        [Span(f"{'' if at else label:<8}", "dim"), *line]
        for at, line in enumerate(fill(split(clean(text), style), width - 8))
    ]


def _verdict(trace: Trace, shown: Round | None, width: int) -> list[Line]:
    mark = _MARKS[shown.outcome] if shown is not None else Span("✗", "bad")
    lines = fill(split(clean(trace.verdict), mark.style), width - 2)
    return [[mark if at == 0 else Span(" "), Span(" "), *line] for at, line in enumerate(lines)]
