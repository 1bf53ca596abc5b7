"""How a doctor's findings are printed: a block a node, and one line that sums up.

A mark says how each stands (✓ ! ✗), so that colour never carries meaning on its own. Below a
finding are the lines that mend it, as they are typed, each group under its reason; then the
remedy. What is fine is one line. Findings quote what others chose (comments of rules, names of
files): none of it is obeyed by a terminal.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

import click

from podwire.agent.doctor.names import CHECKS
from podwire.cli import printing
from podwire.cli.examination import NodeReport
from podwire.trace.render.ink import clean
from podwire.trace.wire import Checked

_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}
_FIXED = ("✓", "cyan")
_CHECK_WIDTH = max(map(len, CHECKS))
_INDENT = " " * (2 + 2 + _CHECK_WIDTH + 2)
_NARROWEST, _WIDEST = 60, 120
#: So many findings of one check are shown of a node; a node may lack thousands of entries.
_SHOWN = 10
#: Of more nodes than these, what is fine is not told in detail.
_IN_DETAIL = 5


def print_json(reports: Sequence[NodeReport]) -> None:
    """Everything, as documented in docs/reference/podwire-doctor.md."""
    printing.print_json(
        {
            "healthy": all(report.healthy for report in reports),
            "nodes": [
                {
                    "node": report.node,
                    "healthy": report.healthy,
                    "findings": [_as_json(one) for one in report.findings],
                }
                for report in reports
            ],
        }
    )


def _as_json(one: Checked) -> dict[str, object]:
    why = {"object": one.why.object, "reason": one.why.reason} if one.why is not None else None
    return {
        "check": one.check,
        "level": one.level,
        "text": one.text,
        "remedy": one.remedy,
        "lines": one.lines,
        "why": why,
        "fixed": one.fixed,
        "peer": one.peer,
    }


def print_text(reports: Sequence[NodeReport]) -> None:
    """For a person. On a terminal, sentences are wrapped; command lines never are."""
    painter = _Painter(printing.colour_enabled(), _width())
    in_detail = len(reports) <= _IN_DETAIL
    for report in reports:
        for line in painter.node(report, in_detail):
            click.echo(line)
        if in_detail or any(one.level != "ok" for one in report.findings):
            click.echo()
    click.echo(painter.summary(reports))


def _width() -> int | None:
    """Columns to wrap at, None where nobody looks at a screen."""
    if not sys.stdout.isatty():
        return None
    return min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)


class _Painter:
    def __init__(self, coloured: bool, width: int | None) -> None:
        self._coloured = coloured
        self._width = width

    def node(self, report: NodeReport, in_detail: bool) -> Iterator[str]:
        verdict, colour = _verdict(report)
        yield f"{self._style(clean(report.node), bold=True)}: {self._style(verdict, fg=colour)}"
        shown = [one for one in report.findings if in_detail or one.level != "ok"]
        for _, of_check in groupby(shown, key=lambda one: one.check):
            findings = list(of_check)
            for index, one in enumerate(findings[:_SHOWN]):
                last = index + 1 >= min(len(findings), _SHOWN)
                yield from self._finding(one, None if last else findings[index + 1])
            if len(findings) > _SHOWN:
                yield f"{_INDENT}… and {len(findings) - _SHOWN} more (-o json has all)"

    def _finding(self, one: Checked, following: Checked | None) -> Iterator[str]:
        mark, colour = _FIXED if one.fixed else _MARKS[one.level]
        text = f"{one.text}: mended" if one.fixed else one.text
        first, *rest = self._wrapped(text)
        yield f"  {self._style(mark, fg=colour)} {one.check:<{_CHECK_WIDTH}}  {first}"
        yield from (_INDENT + line for line in rest)
        # What is to be done about several of a kind is said once, after the last.
        remedy = one.remedy
        grouped = one.why is not None or not one.lines
        if grouped and following is not None and following.remedy == one.remedy:
            remedy = ""
        if one.why is None:
            yield from self._remedy(remedy)
        elif one.lines:
            yield _INDENT + self._style(f"# {clean(str(one.why).strip())}", dim=True)
        # The end of a here-document is found at the start of a line only.
        indent = "" if any("<<" in line for line in one.lines) else _INDENT
        # Tabs stay: a table is indented by them, and they do nothing but that.
        yield from (indent + "\t".join(map(clean, line.split("\t"))) for line in one.lines)
        if one.why is not None:
            yield from self._remedy(remedy)

    def _remedy(self, text: str) -> Iterator[str]:
        if text:
            first, *rest = self._wrapped(f"→ {text}")
            yield _INDENT + self._style(first, fg="cyan")
            yield from (f"{_INDENT}  {self._style(line, fg='cyan')}" for line in rest)

    def summary(self, reports: Sequence[NodeReport]) -> str:
        ill = [clean(report.node) for report in reports if not report.healthy]
        nodes = f"{len(reports)} node" + ("s" if len(reports) != 1 else "")
        if not ill:
            return self._style(f"{nodes} examined: healthy", fg="green")
        return self._style(f"{nodes} examined: not healthy: {', '.join(ill)}", fg="red")

    def _wrapped(self, text: str) -> list[str]:
        text = clean(text)
        if self._width is None:
            return [text]
        width = self._width - len(_INDENT) - 2
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]

    def _style(self, text: str, **style: object) -> str:
        return click.style(text, **style) if self._coloured else text  # type: ignore[arg-type]


def _verdict(report: NodeReport) -> tuple[str, str]:
    problems = sum(one.level == "fail" and not one.fixed for one in report.findings)
    mended = sum(one.fixed for one in report.findings)
    warnings = sum(one.level == "warn" for one in report.findings)
    parts = [
        f"{count} {word if count == 1 else plural}"
        for count, word, plural in (
            (problems, "problem", "problems"),
            (mended, "mended", "mended"),
            (warnings, "warning", "warnings"),
        )
        if count
    ]
    if problems:
        return ", ".join(parts), "red"
    return ", ".join(["healthy", *parts]), "yellow" if warnings else "green"
