"""The shape of objects, as data: one description that checks, defaults and merges.

What lives here: the vocabulary (`Text`, `Integer`, `Listing`, `Record`, ...) and the `Causes` that
a check collects. No kind is described here (`kinds/`), nothing is read or written.

A schema node answers three questions about a JSON value:
  check      what is wrong with it; every fault is collected, with its path, as
             `spec.containers[0].name`
  normalise  the value as stored: nulls dropped, defaults filled in (in place)
  and, as plain attributes, how lists merge under a strategic merge patch (`merge_key`).

Records are open: fields that they do not describe are kept as they came, since the lab describes
just the part of Kubernetes' types that it acts on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from podwire.lab.api.names import TextCheck, quantity

Json = Any
"""A decoded JSON value."""


class Causes:
    """Faults found in an object, in the form of a Status' `details.causes`."""

    def __init__(self) -> None:
        self.found: list[dict[str, str]] = []
        self.malformed = 0
        """How many of them mean that a value hasn't the type that its schema describes."""

    def __bool__(self) -> bool:
        return bool(self.found)

    def add(self, reason: str, path: str, message: str) -> None:
        """Record a cause of any reason; the methods below spell the usual ones."""
        self.found.append({"reason": reason, "message": message, "field": path})

    def required(self, path: str, what: str = "") -> None:
        """The field is absent or empty."""
        self.add(
            "FieldValueRequired", path, f"Required value: {what}" if what else "Required value"
        )

    def invalid(self, path: str, value: Json, expected: str) -> None:
        """The value is of the right type and not acceptable."""
        self.add("FieldValueInvalid", path, f"Invalid value: {shown(value)}: {expected}")

    def wrong_type(self, path: str, value: Json, expected: str) -> None:
        """The value has the wrong JSON type."""
        self.malformed += 1
        message = f"Invalid value: {shown(value)}: must be {expected}"
        self.add("FieldValueTypeInvalid", path, message)

    def unsupported(self, path: str, value: Json, allowed: Sequence[str]) -> None:
        """The value is not one of an enumeration."""
        listed = ", ".join(f'"{word}"' for word in allowed)
        message = f"Unsupported value: {shown(value)}: supported values: {listed}"
        self.add("FieldValueNotSupported", path, message)

    def duplicate(self, path: str, value: Json) -> None:
        """Another element of the list has the same key."""
        self.add("FieldValueDuplicate", path, f"Duplicate value: {shown(value)}")

    def forbidden(self, path: str, why: str) -> None:
        """The field may not be set, or not be changed."""
        self.add("FieldValueForbidden", path, f"Forbidden: {why}")

    def not_found(self, path: str, value: Json) -> None:
        """The value refers to something that the object does not have."""
        self.add("FieldValueNotFound", path, f"Not found: {shown(value)}")

    def too_long(self, path: str, limit: int) -> None:
        """The value exceeds a size limit, in bytes."""
        self.add("FieldValueTooLong", path, f"Too long: may not be more than {limit} bytes")


def shown(value: Json) -> str:
    """`value` as JSON, shortened for a message."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 120 else text[:117] + "..."


def below(path: str, name: str) -> str:
    """The path of field `name` under `path`; map keys with dots or slashes are bracketed."""
    if not path:
        return name
    return f"{path}[{name}]" if "." in name or "/" in name else f"{path}.{name}"


class Schema:
    """Anything: accepts all values. The other nodes narrow it."""

    def check(self, value: Json, path: str, causes: Causes) -> None:
        """Collect what is wrong with `value`, found at `path`."""

    def normalise(self, value: Json) -> Json:
        """`value` as it is stored."""
        return value

    def is_empty(self, value: Json) -> bool:
        """Whether a required field of this schema counts as absent."""
        return value is None


ANYTHING = Schema()


@dataclass(frozen=True)
class Text(Schema):
    """A string; `check_text` says what is wrong with a non-empty one, `allowed` enumerates."""

    check_text: TextCheck | None = None
    allowed: tuple[str, ...] = ()

    def check(self, value: Json, path: str, causes: Causes) -> None:
        if not isinstance(value, str):
            causes.wrong_type(path, value, "a string")
        elif value and self.allowed and value not in self.allowed:
            causes.unsupported(path, value, self.allowed)
        elif value and self.check_text and (wrong := self.check_text(value)):
            causes.invalid(path, value, wrong)

    def is_empty(self, value: Json) -> bool:
        return value is None or value == ""


@dataclass(frozen=True)
class Integer(Schema):
    """A whole number within [minimum, maximum]."""

    minimum: int = -(2**63)
    maximum: int = 2**63 - 1

    def check(self, value: Json, path: str, causes: Causes) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            causes.wrong_type(path, value, "an integer")
        elif not self.minimum <= value <= self.maximum:
            if self.maximum < 2**31 - 1:
                expected = f"must be between {self.minimum} and {self.maximum}, inclusive"
            else:
                expected = f"must be greater than or equal to {self.minimum}"
            causes.invalid(path, value, expected)


@dataclass(frozen=True)
class Boolean(Schema):
    """true or false."""

    def check(self, value: Json, path: str, causes: Causes) -> None:
        if not isinstance(value, bool):
            causes.wrong_type(path, value, "a boolean")


@dataclass(frozen=True)
class Quantity(Schema):
    """A resource quantity: a string such as `100m`, or a number."""

    def check(self, value: Json, path: str, causes: Causes) -> None:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            causes.wrong_type(path, value, "a quantity")
        elif isinstance(value, str) and (wrong := quantity(value)):
            causes.invalid(path, value, wrong)

    def normalise(self, value: Json) -> Json:
        return str(value) if isinstance(value, int | float) else value


@dataclass(frozen=True)
class StringMap(Schema):
    """An object of any keys; `check_key` looks at each key, `values` at each value."""

    values: Schema = Text()
    check_key: TextCheck | None = None

    def check(self, value: Json, path: str, causes: Causes) -> None:
        if not isinstance(value, dict):
            causes.wrong_type(path, value, "an object")
            return
        for key, item in value.items():
            if self.check_key and (wrong := self.check_key(key)):
                causes.invalid(path, key, wrong)
            if item is not None:
                self.values.check(item, below(path, key), causes)

    def normalise(self, value: Json) -> Json:
        if isinstance(value, dict):
            for key, item in list(value.items()):
                if item is not None:
                    value[key] = self.values.normalise(item)
                elif isinstance(self.values, Text):
                    value[key] = ""
                else:
                    del value[key]
        return value


@dataclass(frozen=True)
class Listing(Schema):
    """An array of `item`.

    `merge_key`: under a strategic merge patch elements are matched by this field; "" matches
    primitives by value; None replaces the list whole. `unique`: the fields that together must
    differ between elements. `non_empty`: an empty list counts as absent.
    """

    item: Schema
    merge_key: str | None = None
    unique: tuple[str, ...] = ()
    non_empty: bool = False

    def check(self, value: Json, path: str, causes: Causes) -> None:
        if not isinstance(value, list):
            causes.wrong_type(path, value, "an array")
            return
        seen: set[tuple[str, ...]] = set()
        for index, element in enumerate(value):
            at = f"{path}[{index}]"
            if element is None:
                causes.malformed += 1
                causes.required(at)
                continue
            self.item.check(element, at, causes)
            if self.unique and isinstance(element, dict):
                key = tuple(str(element.get(name, "")) for name in self.unique)
                if key in seen:
                    causes.duplicate(f"{at}.{self.unique[0]}", element.get(self.unique[0]))
                seen.add(key)

    def normalise(self, value: Json) -> Json:
        if isinstance(value, list):
            for index, element in enumerate(value):
                value[index] = self.item.normalise(element)
        return value

    def is_empty(self, value: Json) -> bool:
        return value is None or (self.non_empty and value == [])


@dataclass(frozen=True)
class Field:
    """A field of a `Record`. `required` may be a message that says what must be given."""

    schema: Schema
    required: bool | str = False
    default: Json = None


@dataclass(frozen=True)
class Record(Schema):
    """An object with known fields; others are kept. `also` checks what spans several fields."""

    fields: Mapping[str, Field] = field(default_factory=dict)
    also: Callable[[dict[str, Json], str, Causes], None] | None = None

    def check(self, value: Json, path: str, causes: Causes) -> None:
        if not isinstance(value, dict):
            causes.wrong_type(path, value, "an object")
            return
        malformed = causes.malformed
        for name, known in self.fields.items():
            item = value.get(name)
            if known.schema.is_empty(item):
                if known.required:
                    what = known.required if isinstance(known.required, str) else ""
                    causes.required(below(path, name), what)
            elif item is not None:
                known.schema.check(item, below(path, name), causes)
        # A cross-field check may rely on the types that the fields' own checks assert.
        if self.also and causes.malformed == malformed:
            self.also(value, path, causes)

    def normalise(self, value: Json) -> Json:
        if not isinstance(value, dict):
            return value
        for name in [name for name, item in value.items() if item is None]:
            del value[name]
        for name, known in self.fields.items():
            if known.default is not None and known.schema.is_empty(value.get(name)):
                value[name] = (
                    known.default.copy() if hasattr(known.default, "copy") else known.default
                )
            if name in value:
                value[name] = known.schema.normalise(value[name])
        return value


def optional(schema: Schema, default: Json = None) -> Field:
    """A field that may be left out, and what it then is."""
    return Field(schema, default=default)


def required(schema: Schema, what: str = "") -> Field:
    """A field that must be given; `what` says what is expected."""
    return Field(schema, required=what or True)
