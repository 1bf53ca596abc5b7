"""Which nodes an IPPool is for: Calico's selectors, as far as its users write them for pools.

    all()                       has(KEY)            KEY == 'VALUE'     KEY in {'A', 'B'}
    !EXPRESSION  (EXPRESSION)                       KEY != 'VALUE'     KEY not in {'A', 'B'}
    EXPRESSION && EXPRESSION    EXPRESSION || EXPRESSION

As with Calico: `&&` binds tighter than `||`; a node without the label is matched by `!=` and by
`not in`; values are in single or double quotes, and nothing is escaped in them. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeAlias

#: Whether a node with these labels is meant.
Selector: TypeAlias = Callable[[Mapping[str, str]], bool]

ALL = "all()"

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<word>[A-Za-z0-9_./-]+)
      | '(?P<single>[^']*)' | "(?P<double>[^"]*)"
      | (?P<sign>==|!=|&&|\|\||[!(){},])
    )""",
    re.VERBOSE,
)
_EXPECTED = (
    "expected all(), has(KEY), KEY == 'VALUE', KEY != 'VALUE', KEY in {'A', 'B'}, and these with"
    " &&, ||, ! and parentheses"
)
#: Of one expression in another; who needs more has something else in mind.
_DEPTH = 32


@lru_cache(maxsize=256)
def parse_selector(text: str) -> Selector:
    """What a selector says; an empty one is `all()`. Raises ValueError with what is wrong."""
    if not text.strip():
        return _every
    return _Parser(text).whole()


def is_all(text: str) -> bool:
    """Whether a selector is meant to leave no node out."""
    return re.sub(r"\s", "", text) in ("", ALL)


def _every(labels: Mapping[str, str]) -> bool:
    return True


class _Parser:
    """Recursive descent: or ─▶ and ─▶ not ─▶ one."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str]] = []
        self._depth = 0
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise self._wrong(f"{text[at:].strip()[:10]!r} is not understood")
            kind = match.lastgroup or ""
            self._tokens.append(("value" if kind in ("single", "double") else kind, match[kind]))
            at = match.end()

    def whole(self) -> Selector:
        selector = self._or()
        if self._tokens:
            raise self._wrong(f"{self._tokens[0][1]!r} is one too many")
        return selector

    def _or(self) -> Selector:
        self._depth += 1
        if self._depth > _DEPTH:
            raise self._wrong("it is nested too deeply")
        found = [self._and()]
        while self._take("sign", "||"):
            found.append(self._and())
        self._depth -= 1
        return found[0] if len(found) == 1 else lambda labels: any(one(labels) for one in found)

    def _and(self) -> Selector:
        found = [self._not()]
        while self._take("sign", "&&"):
            found.append(self._not())
        return found[0] if len(found) == 1 else lambda labels: all(one(labels) for one in found)

    def _not(self) -> Selector:
        negations = 0
        while self._take("sign", "!"):
            negations += 1
        one = self._one()
        return one if negations % 2 == 0 else lambda labels: not one(labels)

    def _one(self) -> Selector:
        if self._take("sign", "("):
            inner = self._or()
            self._need("sign", ")")
            return inner
        key = self._need("word")
        if key in ("all", "has") and self._take("sign", "("):
            asked = self._need("word") if key == "has" else ""
            self._need("sign", ")")
            return (lambda labels: asked in labels) if asked else _every
        if self._take("sign", "=="):
            value = self._need("value")
            return lambda labels: labels.get(key) == value
        if self._take("sign", "!="):
            other = self._need("value")
            return lambda labels: labels.get(key) != other
        negated = self._take("word", "not")
        self._need("word", "in")
        values = self._values()
        return lambda labels: (labels.get(key) in values) is not negated

    def _values(self) -> frozenset[str]:
        self._need("sign", "{")
        found = set()
        if not self._take("sign", "}"):
            found.add(self._need("value"))
            while self._take("sign", ","):
                found.add(self._need("value"))
            self._need("sign", "}")
        return frozenset(found)

    def _take(self, kind: str, text: str) -> bool:
        """Whether the next token is that; it is used up then."""
        if self._tokens and self._tokens[0] == (kind, text):
            del self._tokens[0]
            return True
        return False

    def _need(self, kind: str, text: str | None = None) -> str:
        if not self._tokens:
            raise self._wrong("it ends too early")
        found, token = self._tokens.pop(0)
        if found != kind or (text is not None and token != text):
            wanted = {"word": "a label's key", "value": "a value in quotes"}
            raise self._wrong(f"{token!r} stands where {text or wanted[kind]} was expected")
        return token

    def _wrong(self, problem: str) -> ValueError:
        return ValueError(f"selector {self._text!r}: {problem}; {_EXPECTED}")
