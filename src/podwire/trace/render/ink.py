"""Lines of styled text for a terminal: escaping, widths, wrapping, colour.

What lives here: what keeps the text face safe and inside of its width. What does not: what is said.

A line is a list of spans, each a text and a style. Text from outside goes through `clean` before
it becomes one: then a span holds no character that moves a cursor, turns writing around or takes
up no cell, and `cells` is true. Colour is added last and never has a meaning of its own.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_SGR = {
    "": "",
    "bold": "1",
    "dim": "2",
    "place": "1;36",
    "changed": "1;33",
    "warn": "33",
    "good": "1;32",
    "bad": "1;31",
    "command": "1;33",
}


class Span(NamedTuple):
    """`text` is clean; `style` is one of the names above."""

    text: str
    style: str = ""


Line = list[Span]


def clean(text: str) -> str:
    """`text` with everything that a terminal would obey or hide as an escape (`\\x1b`, `\\u202e`).

    Control, format and combining characters, unassigned ones, separators other than a space.
    """
    return "".join(
        char
        if char.isprintable() and not unicodedata.category(char).startswith("M")
        else _escape(char)
        for char in text
    )


def _escape(char: str) -> str:
    number = ord(char)
    if char in "\n\t\r":
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}[char]
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def cells(text: str) -> int:
    """How many columns a clean text takes: two for a wide character."""
    if text.isascii():
        return len(text)
    return sum(_cell(char) for char in text)


def _cell(char: str) -> int:
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def length(line: Iterable[Span]) -> int:
    return sum(cells(span.text) for span in line)


def clip(text: str, width: int) -> str:
    """A clean text in at most `width` columns, with an ellipsis where something is left out."""
    if cells(text) <= width:
        return text
    kept, used = "", 0
    for char in text:
        used += _cell(char)
        if used > width - 1:
            break
        kept += char
    return kept + "…"


def pad(text: str, width: int) -> str:
    return text + " " * (width - cells(text))


def fill(units: Sequence[Span], width: int, gap: int = 1) -> list[Line]:
    """`units` in lines of at most `width` columns (at least 2), `gap` spaces between two.

    A unit is broken only where it is longer than a line: at its spaces, or else anywhere.
    """
    lines: list[Line] = [[]]
    used = 0
    for unit in units:
        if not unit.text:
            continue
        size = cells(unit.text)
        if used and used + gap + size <= width:
            lines[-1] += [Span(" " * gap), unit]
            used += gap + size
            continue
        for part in _parts(unit.text, width):
            if lines[-1]:
                lines.append([])
            lines[-1].append(Span(part, unit.style))
            used = cells(part)
    return lines if lines != [[]] else []


def _parts(text: str, width: int) -> list[str]:
    """`text` in pieces of at most `width` columns, broken at spaces where there are any."""
    parts = []
    while cells(text) > width:
        head = _head(text, width)
        space = head.rfind(" ") if text[len(head)] != " " else len(head)
        if space > 0:
            head = text[:space]
        if stripped := head.rstrip(" "):
            parts.append(stripped)
        text = text[len(head) :].lstrip(" ")
    return [*parts, text] if text else parts


def _head(text: str, width: int) -> str:
    used = 0
    for at, char in enumerate(text):
        used += _cell(char)
        if used > width:
            return text[:at]
    return text


def words(text: str, style: str = "") -> list[Span]:
    """A clean text as units for `fill`."""
    return [Span(word, style) for word in text.split(" ") if word]


def paint(lines: Iterable[Sequence[Span]], *, colour: bool) -> str:
    """The lines as text, without spaces at their ends."""
    return "".join(_paint_line(line, colour) + "\n" for line in lines)


def _paint_line(line: Sequence[Span], colour: bool) -> str:
    spans = [span for span in line if span.text]
    while spans and not spans[-1].text.rstrip(" "):
        spans.pop()
    if spans:
        spans[-1] = Span(spans[-1].text.rstrip(" "), spans[-1].style)
    if not colour:
        return "".join(span.text for span in spans)
    return "".join(
        f"\x1b[{code}m{span.text}\x1b[0m" if (code := _SGR[span.style]) else span.text
        for span in spans
    )
