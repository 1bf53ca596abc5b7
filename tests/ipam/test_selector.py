"""Node selectors of IPPools, as Calico reads them."""

from __future__ import annotations

import pytest

from podwire.ipam.selector import is_all, parse_selector

NODE = {"zone": "a", "kubernetes.io/os": "linux", "gpu": ""}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "all()",
        " all ( ) ",
        "zone == 'a'",
        'zone=="a"',
        "has(gpu)",
        "has(kubernetes.io/os) && zone == 'a'",
        "!has(rack)",
        "rack != 'r1'",
        "zone in {'a', 'b'}",
        "zone not in {'c'} && rack not in {}",
        "zone == 'b' || zone == 'a'",
        "zone == 'a' || zone == 'b' && has(rack)",
        "!(zone == 'b' || has(rack))",
        "!!has(zone)",
    ],
)
def test_a_node_that_is_meant(text: str) -> None:
    assert parse_selector(text)(NODE)


@pytest.mark.parametrize(
    "text",
    [
        "!all()",
        "zone == 'A'",
        "rack == ''",
        "has(rack)",
        "zone != 'a'",
        "rack in {'r1'}",
        "zone not in {'a'}",
        "(zone == 'a' || zone == 'b') && has(rack)",
    ],
)
def test_a_node_that_is_not_meant(text: str) -> None:
    assert not parse_selector(text)(NODE)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("zone", "ends too early"),
        ("zone = 1", "'= 1' is not understood"),
        ("zone == a", "'a' stands where a value in quotes was expected"),
        ("zone == 'a", "is not understood"),
        ("== 'a'", "where a label's key was expected"),
        ("has()", "where a label's key was expected"),
        ("all(", "ends too early"),
        ("all() all()", "'all' is one too many"),
        ("zone in {'a' 'b'}", "'b' stands where } was expected"),
        ("zone is 'a'", "'is' stands where in was expected"),
        ("(" * 40, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_said(text: str, why: str) -> None:
    with pytest.raises(ValueError, match="selector ") as caught:
        parse_selector(text)
    assert why in str(caught.value)


def test_which_ones_leave_no_node_out() -> None:
    assert [is_all(text) for text in ("", " all( )", "has(a)", "!all()")] == [1, 1, 0, 0]
