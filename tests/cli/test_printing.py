"""Tables, ages, JSON and YAML as kubectl prints them."""

from __future__ import annotations

import datetime as dt
import io

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.cli.printing import (
    Table,
    age,
    print_json,
    print_table,
    status_style,
    to_yaml,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    out = io.StringIO()
    print_table(
        ["NAME", "STATUS", "AGE"], [["a", "Running", "5s"], ["a-long-name", "", ""]], file=out
    )
    assert out.getvalue() == (
        "NAME          STATUS    AGE\na             Running   5s\na-long-name\n"
    )


def test_headers_can_be_left_out() -> None:
    out = io.StringIO()
    print_table(["A-LONG-HEADER", "B"], [["x", "y"]], show_headers=False, file=out)
    assert out.getvalue() == "x   y\n"


def test_a_table_can_go_on_and_keeps_its_columns() -> None:
    out = io.StringIO()
    table = Table(["NAME", "AGE"], file=out)
    table.print([["long-name", "1s"]])
    table.print([["b", "2s"]])
    assert out.getvalue().splitlines() == ["NAME        AGE", "long-name   1s", "b           2s"]


def test_a_row_that_does_not_fit_is_a_bug() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        print_table(["ONE"], [["a", "b"]], file=io.StringIO())


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    rows = [["a", "Running"], ["b", "CrashLoopBackOff"]]
    coloured, piped = Terminal(), io.StringIO()
    print_table(["NAME", "STATUS"], rows, file=coloured)
    print_table(["NAME", "STATUS"], rows, file=piped)
    assert "\x1b[32mRunning" in coloured.getvalue()
    assert "\x1b[31mCrashLoopBackOff" in coloured.getvalue()
    assert "\x1b" not in piped.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    print_table(["NAME", "STATUS"], rows, file=plain)
    assert plain.getvalue() == piped.getvalue()


def test_own_styles_replace_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    print_table(["STATUS", "X"], [["up", "y"]], styles={"X": lambda cell: f"<{cell}>"}, file=out)
    assert out.getvalue().splitlines()[1] == "up       <y>"


@pytest.mark.parametrize(
    ("word", "colour"),
    [
        ("Ready", 32),
        ("Ready,SchedulingDisabled", 32),
        ("Init:0/1", 33),
        ("NotReady", 33),
        ("x", 31),
    ],
)
def test_status_colours(word: str, colour: int) -> None:
    assert status_style(word) == f"\x1b[{colour}m{word}\x1b[0m"


def test_ages() -> None:
    now = dt.datetime(2026, 1, 1, 0, 1, tzinfo=dt.UTC)
    assert age("2026-01-01T00:00:00Z", now=now) == "60s"
    assert age("2026-01-01T00:00:30.123456Z", now=now) == "29s"
    assert age(None) == age("yesterday") == "<unknown>"


def test_json_keeps_the_order_of_keys() -> None:
    out = io.StringIO()
    print_json({"b": 1, "a": [True, None, "ä"]}, file=out)
    assert out.getvalue() == (
        '{\n    "b": 1,\n    "a": [\n        true,\n        null,\n        "ä"\n    ]\n}\n'
    )


def test_text_of_several_lines_is_a_block() -> None:
    assert to_yaml({"b": "x\ny\n", "a": "yes"}) == "a: 'yes'\nb: |\n  x\n  y\n"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
    max_leaves=10,
)


@settings(max_examples=25)
@given(json_values)
def test_yaml_can_be_read_back(value: object) -> None:
    assert yaml.safe_load(to_yaml(value)) == value
