"""JSON and MessagePack from outside, as values: whatever is wrong with them is one kind of error.

What lives here: the only place that knows in which ways a decoder can fail. It checks the syntax
and the shape; what the values mean is checked by who asks for them. YAML, which few send, is read
by PyYAML where it arrives, after `check_yaml`: libyaml's composer calls itself for each level,
counts none, and ends the process at some 100,000.

Bytes that nobody has checked make msgspec raise three things: its own DecodeError,
UnicodeDecodeError for a string that is not UTF-8, and RecursionError, which is no ValueError, for
what is nested a thousand levels deep.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from podwire.errors import InputError

if TYPE_CHECKING:
    import yaml

T = TypeVar("T")

#: Levels of lists and objects in YAML; PyYAML's constructor gets no further than 300 or so.
_MOST_NESTED = 200


def from_json(raw: bytes | str | msgspec.Raw, kind: type[T], *, strict: bool = True) -> T:
    """`raw` as `kind`; where not `strict`, numbers may be written as strings.

    Raises msgspec.DecodeError: ValidationError, which is one, where it is JSON of another shape.
    """
    return cast(T, _decoded(_json(cast(Any, kind), strict).decode, raw))


def from_msgpack(raw: bytes, kind: type[T]) -> T:
    """`raw` as `kind`. Raises msgspec.DecodeError, as `from_json` does."""
    return cast(T, _decoded(_msgpack(cast(Any, kind)).decode, raw))


def decode(
    raw: bytes | str, kind: type[T], *, field: str, expected: str, remedy: str | None = None
) -> T:
    """`raw`, which came in `field`, as `kind`. Raises InputError, which says what was `expected`
    there, as a noun with its article."""
    try:
        return from_json(raw, kind)
    except msgspec.DecodeError as error:
        raise InputError(f"{error}; expected {expected}", field=field, remedy=remedy) from None


def check_yaml(text: bytes | str, loader: type[yaml.CSafeLoader], *, aliases: bool = True) -> None:
    """Raises yaml.YAMLError unless PyYAML can make values of `text`: for what is no YAML, is nested
    too deeply, also by way of aliases, or has any alias where these are not accepted."""
    import yaml

    # The height of each anchor's value, and of what is open now; an anchor that is open has none.
    heights: dict[str | None, int] = {}
    nested: list[tuple[str | None, int]] = [(None, 0)]

    def refused(problem: str) -> yaml.YAMLError:
        return yaml.composer.ComposerError(None, None, problem, cast(Any, event.start_mark))

    for event in yaml.parse(text, Loader=loader):
        height = 0
        if isinstance(event, yaml.CollectionStartEvent):
            nested.append((event.anchor, 0))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, height = nested.pop()
            height += 1
            if anchor is not None:
                heights[anchor] = height
        elif isinstance(event, yaml.AliasEvent):
            if not aliases:
                raise refused("aliases are not accepted")
            if any(anchor == event.anchor for anchor, _ in nested):
                raise refused("an alias to what it is inside of")
            height = heights.get(event.anchor, 0)
        nested[-1] = (nested[-1][0], max(nested[-1][1], height))
        if len(nested) - 1 + height > _MOST_NESTED:
            raise refused(f"nested too deeply; expected {_MOST_NESTED} levels at most")


def _decoded(decode: Callable[[Any], Any], raw: object) -> Any:
    try:
        return decode(raw)
    except UnicodeError as error:
        raise msgspec.DecodeError(f"not UTF-8: {error}") from None
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None


# Kinds are types of the program, so there are few; to make a decoder costs what decoding does.
@functools.cache
def _json(kind: Any, strict: bool) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, strict=strict)


@functools.cache
def _msgpack(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)
