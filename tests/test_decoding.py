"""What comes from outside: every way to be wrong is one error, which says what was expected."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import yaml

from podwire.decoding import check_yaml, decode, from_json, from_msgpack
from podwire.errors import InputError


class Thing(msgspec.Struct):
    size: int
    name: str = ""


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"size": "1"}',
        b'{"size": 1, "name": "\xff"}',
        b'{"size": 1, "more": ' + b"[" * 100_000,
        '{"size": 1, "name": "\udcff"}',
    ],
)
def test_what_is_no_such_thing_is_refused(raw: bytes | str) -> None:
    with pytest.raises(msgspec.DecodeError):
        from_json(raw, Thing)
    with pytest.raises(InputError, match=r"^spec: .*; expected a thing; write one$") as caught:
        decode(raw, Thing, field="spec", expected="a thing", remedy="write one")
    assert (caught.value.field, caught.value.remedy) == ("spec", "write one")


def test_values_are_of_the_kind_asked_for() -> None:
    assert from_json(b'{"size": 1}', Thing) == Thing(1)
    assert from_json('{"size": 1}', dict[str, Any]) == {"size": 1}
    assert from_json(b'{"size": "1"}', Thing, strict=False) == Thing(1)


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"\x90", b"\x81\xa4size\xa11", b"\x82\xa4size\x01\xa4name\xa1\xff"),
        b"\x82\xa4size\x01\xa4more" + b"\x91" * 100_000,
    ],
)
def test_messagepack_is_refused_alike(raw: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        from_msgpack(raw, Thing)
    assert from_msgpack(b"\x81\xa4size\x01", Thing) == Thing(1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 201 + "]" * 201, "nested too deeply"),
        (
            "a: " + "&a [" * 150 + "]" * 150 + "\nb: {c: " + "[" * 150 + "*a" + "]" * 150 + "}",
            "nested",
        ),
        ("a: &a [b, *a]", "inside of"),
        ("a: [", "expected"),
    ],
)
def test_yaml_that_no_value_can_be_made_of_is_refused(text: str, problem: str) -> None:
    with pytest.raises(yaml.YAMLError, match=problem):
        check_yaml(text, yaml.CSafeLoader)


def test_yaml_may_have_aliases_where_they_are_accepted() -> None:
    text = "a: &a {x: " + "[" * 100 + "]" * 100 + "}\nb: [*a, &c y, *c]"
    check_yaml(text, yaml.CSafeLoader)
    check_yaml("[" * 200 + "]" * 200, yaml.CSafeLoader, aliases=False)
    with pytest.raises(yaml.YAMLError, match="aliases"):
        check_yaml(text, yaml.CSafeLoader, aliases=False)
