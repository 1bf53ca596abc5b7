"""How commands put tables, objects and ages on standard output.

What lives here: aligned tables, `-o json|yaml|name`, ages and durations in kubectl's words, and
colour. What does not: which columns a kind has (`columns.py`).

Tables are kubectl's: upper-case headers, columns padded to their widest cell and three spaces
apart, nothing after the last. Colour marks words only (a status), never carries meaning on its
own, and is used only when standard output is a terminal and NO_COLOR is unset (no-color.org).
"""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

import click
import msgspec

from podwire.durations import human_duration

Style = Callable[[str], str]
Object = Mapping[str, Any]

NONE = "<none>"
UNKNOWN = "<unknown>"

_GAP = "   "
_GOOD = frozenset({"Active", "Completed", "Ready", "Running", "Succeeded", "ok", "up"})
_PASSING = frozenset(
    {"ContainerCreating", "NotReady", "Pending", "Starting", "Terminating", "Unknown", "Warning"}
)


def colour_enabled(file: TextIO | None = None) -> bool:
    """Whether to colour what goes to `file` (standard output when None)."""
    file = sys.stdout if file is None else file
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not plain and file.isatty()


def status_style(cell: str) -> str:
    """Colour for a cell that names a state: green settled, yellow on its way, red wrong.

    A node's state may carry a note after a comma (`Ready,SchedulingDisabled`); the first word
    decides.
    """
    word = cell.partition(",")[0]
    if word in ("", NONE, "Normal"):
        return cell
    if word in _GOOD:
        return click.style(cell, fg="green")
    if word in _PASSING or word.startswith("Init:"):
        return click.style(cell, fg="yellow")
    return click.style(cell, fg="red")


DEFAULT_STYLES: Mapping[str, Style] = {"STATUS": status_style, "TYPE": status_style}


class Table:
    """A table printed in parts, for output that goes on (`get -w`): columns never get narrower.

    `styles` maps a header to the function that colours its cells; it sees the bare cell and may
    only add escape sequences, never change the width.
    """

    def __init__(
        self,
        headers: Sequence[str],
        *,
        styles: Mapping[str, Style] | None = None,
        show_headers: bool = True,
        file: TextIO | None = None,
    ) -> None:
        self._file = sys.stdout if file is None else file
        by_header = DEFAULT_STYLES if styles is None else styles
        wanted = by_header if colour_enabled(self._file) else {}
        self._styles = [wanted.get(header) for header in headers]
        self._pending_header = tuple(headers) if show_headers else None
        self._widths = [len(header) if show_headers else 0 for header in headers]

    def print(self, rows: Iterable[Sequence[str]]) -> None:
        """Print `rows`, under the header the first time."""
        cells = [tuple(row) for row in rows]
        for row in cells:
            if len(row) != len(self._widths):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self._widths)}")
            self._widths = [
                max(width, len(cell)) for width, cell in zip(self._widths, row, strict=True)
            ]
        lines = []
        if self._pending_header is not None:
            lines.append(self._line(self._pending_header, [None] * len(self._widths)))
            self._pending_header = None
        lines += [self._line(row, self._styles) for row in cells]
        self._file.write("".join(lines))
        self._file.flush()

    def _line(self, row: Sequence[str], styles: Sequence[Style | None]) -> str:
        parts = [
            (style(cell) if style else cell) + " " * (width - len(cell))
            for cell, width, style in zip(row, self._widths, styles, strict=True)
        ]
        return _GAP.join(parts).rstrip(" ") + "\n"


def print_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    styles: Mapping[str, Style] | None = None,
    show_headers: bool = True,
    file: TextIO | None = None,
) -> None:
    """Print one aligned table. `styles` as for `Table`; None colours STATUS and TYPE columns."""
    Table(headers, styles=styles, show_headers=show_headers, file=file).print(rows)


def parse_time(timestamp: object) -> dt.datetime | None:
    """An RFC 3339 time of the Kubernetes API, or None where there is none or it is malformed."""
    if not isinstance(timestamp, str):
        return None
    try:
        parsed = dt.datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=dt.UTC)


def age(timestamp: object, *, now: dt.datetime | None = None) -> str:
    """How long ago `timestamp` (RFC 3339) was, as kubectl writes it; `<unknown>` without one."""
    then = parse_time(timestamp)
    if then is None:
        return UNKNOWN
    return human_duration(((now or dt.datetime.now(dt.UTC)) - then).total_seconds())


def print_json(value: object, *, file: TextIO | None = None) -> None:
    """Print `value` as JSON, indented by four as kubectl does, keys in their own order."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=4).decode()
    print(text, file=file, flush=True)


def to_yaml(value: object) -> str:
    """`value` as block-style YAML with sorted keys; strings of several lines become `|` blocks."""
    import yaml

    class Dumper(yaml.CSafeDumper):
        """The safe dumper, with literal blocks and without `&anchors` for repeated values."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent_text(dumper: yaml.CSafeDumper, text: str) -> yaml.Node:
        style = "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent_text)
    return yaml.dump(value, Dumper=Dumper, default_flow_style=False, allow_unicode=True)


def print_yaml(value: object, *, file: TextIO | None = None) -> None:
    """Print `value` as YAML, as `to_yaml` writes it."""
    print(to_yaml(value), end="", file=file, flush=True)
