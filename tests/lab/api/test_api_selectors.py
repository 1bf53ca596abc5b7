"""Label and field selectors."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.errors import ApiError
from podwire.lab.api.selectors import (
    Requirement,
    Selection,
    field_value,
    parse_fields,
    parse_labels,
)

FIELDS = ("metadata.name", "spec.nodeName", "status.phase")


def selects(text: str, labels: dict[str, str]) -> bool:
    return Selection(labels=parse_labels(text)).matches({"metadata": {"labels": labels}})


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("", {}, True),
        ("a=b", {"a": "b"}, True),
        ("a==b", {"a": "c"}, False),
        ("a=", {"a": ""}, True),
        ("a!=b", {}, True),
        ("a!=b", {"a": "b"}, False),
        ("a in (b,c)", {"a": "c"}, True),
        ("a in (b, c)", {}, False),
        ("a in ()", {"a": ""}, True),
        ("a notin (b,c)", {"a": "b"}, False),
        ("a notin (b,c)", {}, True),
        ("a", {"a": ""}, True),
        ("!a", {"a": ""}, False),
        ("! a", {}, True),
        ("a=b,c", {"a": "b"}, False),
        (" a = b , !c ", {"a": "b"}, True),
        ("example.com/in in (in),notin notin (notin)", {"example.com/in": "in"}, True),
        ("in", {"in": "x"}, True),
    ],
)
def test_label_selectors(text: str, labels: dict[str, str], expected: bool) -> None:
    assert selects(text, labels) is expected


@pytest.mark.parametrize(
    "text",
    ["a b", "a=b,", ",", "a in", "a in (b", "=b", "a=b=c", "a b=c", "a=b c", "a/b/c=d", "a=-"],
)
def test_malformed_label_selectors_are_refused(text: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_labels(text)
    assert refused.value.status == 400


_word = st.text(string.ascii_letters + string.digits, min_size=1, max_size=6)
_key = _word | st.builds("{}.io/{}".format, _word.map(str.lower), _word)
_operator = st.sampled_from(["in", "notin", "exists", "!exists"])


def _text(requirement: Requirement) -> str:
    listed = ",".join(sorted(requirement.values))
    forms = {"exists": "{0}", "!exists": "!{0}", "in": "{0} in ({1})", "notin": "{0} notin ({1})"}
    return forms[requirement.operator].format(requirement.key, listed)


_requirement = st.builds(
    lambda key, operator, values: Requirement(
        key, operator, frozenset(values) if operator in ("in", "notin") else frozenset()
    ),
    _key,
    _operator,
    st.sets(_word, min_size=1, max_size=3),
)


@given(st.lists(_requirement, max_size=4))
def test_what_is_written_is_what_is_parsed(requirements: list[Requirement]) -> None:
    assert parse_labels(",".join(map(_text, requirements))) == tuple(requirements)


@given(st.dictionaries(_key, _word, max_size=4), _key, st.sets(_word, min_size=1, max_size=3))
def test_operators_come_in_opposites(labels: dict[str, str], key: str, values: set[str]) -> None:
    listed = ",".join(values)
    assert selects(f"{key} in ({listed})", labels) != selects(f"{key} notin ({listed})", labels)
    assert selects(key, labels) != selects(f"!{key}", labels)
    one = next(iter(values))
    assert selects(f"{key}={one}", labels) != selects(f"{key}!={one}", labels)


@given(st.text(max_size=30))
def test_any_text_parses_or_is_a_bad_request(text: str) -> None:
    for parse in (parse_labels, lambda text: parse_fields(text, FIELDS)):
        try:
            parse(text)
        except ApiError as refused:
            assert refused.status == 400


def test_field_selectors() -> None:
    obj = {"metadata": {"name": "a,b"}, "spec": {"nodeName": "n1"}}

    def matches(text: str) -> bool:
        return Selection(fields=parse_fields(text, FIELDS)).matches(obj)

    assert matches("spec.nodeName=n1,status.phase=")
    assert matches("spec.nodeName==n1")
    assert matches("spec.nodeName!=n2,")
    assert not matches("status.phase!=")
    assert matches(r"metadata.name=a\,b")
    with pytest.raises(ApiError, match="field label not supported"):
        matches("spec.image=x")


def test_field_values_are_text() -> None:
    assert field_value({"a": {"b": True, "c": 5}}, "a.b") == "true"
    assert field_value({"a": {"b": True, "c": 5}}, "a.c") == "5"
    assert field_value({"a": "x"}, "a.b.c") == ""
