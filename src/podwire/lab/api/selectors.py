"""Label and field selectors: parsing and matching.

What lives here: the two grammars and what they mean for given labels and fields. Which fields a
kind offers is its own affair (`kinds`).
Source: k8s.io/apimachinery/pkg/labels/selector.go, pkg/fields/selector.go.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from podwire.lab.api import status
from podwire.lab.api.names import label_value, qualified_name

_SET = re.compile(r"\s*([^\s!=,()]+)\s+(in|notin)\s*\(([^()]*)\)\s*")
_EQUALITY = re.compile(r"\s*([^\s!=,()]+)\s*(==|=|!=)\s*([^\s!=,()]*)\s*")
_EXISTS = re.compile(r"\s*(!?)\s*([^\s!=,()]+)\s*")
_UNESCAPE = re.compile(r"\\([\\,=])")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term of a label selector; `operator` is in, notin, exists or !exists."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether `labels` meet it. A missing label meets notin."""
        value = labels.get(self.key)
        if self.operator == "exists":
            return value is not None
        if self.operator == "!exists":
            return value is None
        return (value in self.values) == (self.operator == "in")


@dataclass(frozen=True, slots=True)
class FieldRequirement:
    """One term of a field selector: equal or, when `negated`, not equal."""

    path: str
    value: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """What a list or watch asks for; an empty one matches everything."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[FieldRequirement, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.labels or self.fields)

    def matches(self, obj: Any) -> bool:
        """Whether a (decoded) object is selected."""
        if self.labels:
            labels = obj["metadata"].get("labels") or {}
            if not all(requirement.matches(labels) for requirement in self.labels):
                return False
        return all(
            (field_value(obj, field.path) == field.value) != field.negated for field in self.fields
        )


def field_value(obj: Any, path: str) -> str:
    """The value at a dotted path, as field selectors compare it: "" when absent."""
    for name in path.split("."):
        if not isinstance(obj, dict):
            return ""
        obj = obj.get(name)
    if obj is None:
        return ""
    if isinstance(obj, bool):
        return "true" if obj else "false"
    return str(obj)


def parse_labels(text: str) -> tuple[Requirement, ...]:
    """Parse a label selector; raises `ApiError` 400 naming the part that is wrong."""
    requirements = []
    position = 0
    while text[position:].strip():
        requirement, position = _label_term(text, position)
        if wrong := qualified_name(requirement.key):
            raise _unparsable(text, f'key "{requirement.key}": {wrong}')
        for value in requirement.values:
            if wrong := label_value(value):
                raise _unparsable(text, f'value "{value}" of key "{requirement.key}": {wrong}')
        requirements.append(requirement)
        if position < len(text):
            if text[position] != ",":
                raise _unparsable(text, f'found "{text[position:]}", expected "," or the end')
            position += 1
            if not text[position:].strip():
                raise _unparsable(text, 'expected a requirement after ","')
    return tuple(requirements)


def _label_term(text: str, position: int) -> tuple[Requirement, int]:
    if match := _SET.match(text, position):
        key, operator, listed = match.groups()
        values = frozenset(value.strip() for value in listed.split(","))
        return Requirement(key, operator, values), match.end()
    if match := _EQUALITY.match(text, position):
        key, sign, value = match.groups()
        operator = "notin" if sign == "!=" else "in"
        return Requirement(key, operator, frozenset([value])), match.end()
    if match := _EXISTS.match(text, position):
        negated, key = match.groups()
        return Requirement(key, "!exists" if negated else "exists"), match.end()
    raise _unparsable(text, f'found "{text[position:]}", expected a requirement such as "app=web"')


def parse_fields(text: str, supported: Collection[str]) -> tuple[FieldRequirement, ...]:
    """Parse a field selector over the `supported` paths; raises `ApiError` 400."""
    requirements = []
    for term in re.split(r"(?<!\\),", text):
        if not term.strip():
            continue
        match = re.match(r"\s*([^\s!=]+)\s*(==|=|!=)(.*)", term, re.DOTALL)
        if match is None:
            raise status.bad_request(
                f"invalid field selector {term!r}: expected a term such as metadata.name=web"
            )
        path, sign, value = match.groups()
        if path not in supported:
            raise status.bad_request(
                f'field label not supported: "{path}" (supported: {", ".join(sorted(supported))})'
            )
        plain = _UNESCAPE.sub(r"\1", value.strip())
        requirements.append(FieldRequirement(path, plain, negated=sign == "!="))
    return tuple(requirements)


def _unparsable(text: str, why: str) -> Exception:
    return status.bad_request(f'unable to parse label selector "{text}": {why}')
