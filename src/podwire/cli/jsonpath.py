r"""The part of kubectl's JSONPath that people use: `{.status.podIP}`, `{.items[*].metadata.name}`.

Pure: a template is parsed once and rendered against objects. A template is text with expressions
in braces; a bare expression needs none. An expression is a chain of `.name`, `['name']` (for
names with dots; `\.` works too), `[0]`, `[-1]`, `[*]` and `[?(@.type=="Ready")]`. What it finds
is joined by spaces, and nothing found is no error, as in kubectl. `range` is not there.

Source: https://kubernetes.io/docs/reference/kubectl/jsonpath/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import click
import msgspec

Step: TypeAlias = Callable[[Any], Iterable[Any]]

_NAME = re.compile(r"\.((?:\\.|[^.\[\]\\{}\s])+)")
_QUOTED = re.compile(r"""\[(?:'((?:\\.|[^'])*)'|"((?:\\.|[^"])*)")\]""")
_INDEX = re.compile(r"\[(-?\d+)\]")
_EVERY = re.compile(r"\[\*\]|\.\*")
_FILTER = re.compile(
    r"""\[\?\(\s*@([^=!()]+?)\s*(==|!=)\s*(?:'([^']*)'|"([^"]*)"|([^'")\s]+))\s*\)\]"""
)
_ESCAPES = {"n": "\n", "t": "\t"}


class Path:
    """One expression: a chain of steps, each taking a value to the values below it."""

    def __init__(self, text: str) -> None:
        """Parse `text`, without its braces. Raises `click.BadParameter`."""
        self._steps = list(_parse(text))

    def find(self, value: Any) -> list[Any]:
        """Every value that the path leads to, in order."""
        values = [value]
        for step in self._steps:
            values = [below for value in values for below in step(value)]
        return values


class Template:
    """Text with expressions in braces."""

    def __init__(self, text: str) -> None:
        """Parse `text`. Raises `click.BadParameter` saying what is wrong with it."""
        self._parts: list[str | Path] = []
        if "{" not in text:
            self._parts.append(Path(text))
            return
        for literal, expression in _split(text):
            if literal:
                self._parts.append(literal)
            if expression[:1] in ("'", '"'):
                self._parts.append(_unescape(expression[1:-1]))
            elif expression:
                self._parts.append(Path(expression))

    def render(self, value: Any) -> str:
        """The template filled in from `value`."""
        return "".join(
            part
            if isinstance(part, str)
            else " ".join(text_of(found) for found in part.find(value))
            for part in self._parts
        )


def text_of(value: Any) -> str:
    """A found value as kubectl prints it: text bare, the rest as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _split(text: str) -> Iterator[tuple[str, str]]:
    """Pairs of literal text and the expression after it."""
    position = 0
    while position < len(text):
        start = text.find("{", position)
        if start < 0:
            yield text[position:], ""
            return
        end = _closing_brace(text, start)
        expression = text[start + 1 : end].strip()
        if not expression:
            raise click.BadParameter(f"{text!r}: empty braces")
        yield text[position:start], expression
        position = end + 1


def _closing_brace(text: str, start: int) -> int:
    quote = ""
    for index in range(start + 1, len(text)):
        character = text[index]
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "}":
            return index
    raise click.BadParameter(f"{text!r}: a brace is not closed")


def _parse(text: str) -> Iterator[Step]:
    rest = text.strip().removeprefix("$")
    if rest in ("", "."):
        return
    if rest[0] not in ".[":
        rest = "." + rest
    while rest:
        step, rest = _parse_step(rest, text)
        yield step


def _parse_step(rest: str, text: str) -> tuple[Step, str]:
    patterns: Sequence[tuple[re.Pattern[str], Callable[[re.Match[str]], Step]]] = (
        (_EVERY, lambda _: _every),
        (_NAME, lambda match: _child(_unescape(match[1]))),
        (_QUOTED, lambda match: _child(_unescape(match[1] or match[2] or ""))),
        (_INDEX, lambda match: _item(int(match[1]))),
        (_FILTER, _filter),
    )
    for pattern, build in patterns:
        match = pattern.match(rest)
        if match:
            return build(match), rest[match.end() :]
    raise click.BadParameter(f"{text!r}: cannot read the JSONPath from {rest!r} on")


def _child(name: str) -> Step:
    return lambda value: [value[name]] if isinstance(value, dict) and name in value else []


def _item(index: int) -> Step:
    def step(value: Any) -> Iterable[Any]:
        inside = isinstance(value, list) and -len(value) <= index < len(value)
        return [value[index]] if inside else []

    return step


def _every(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _filter(match: re.Match[str]) -> Step:
    path, equal = Path(match[1]), match[2] == "=="
    wanted = next(group for group in match.groups()[2:] if group is not None)

    def step(value: Any) -> Iterable[Any]:
        items = value if isinstance(value, list) else []
        return [
            item for item in items if (wanted in [text_of(v) for v in path.find(item)]) is equal
        ]

    return step


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), text)
