"""The JSON face: nothing is lost, and what the documentation says is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from podwire.errors import InputError
from podwire.trace.model import Cause, Outcome, Trace
from podwire.trace.render.json import json_schema, parse_json, render_json

from .samples import SAMPLES, across
from .strategies import traces

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"


@pytest.mark.parametrize("name", SAMPLES)
def test_a_trace_comes_back_as_it_was(name: str) -> None:
    trace = SAMPLES[name]()
    assert parse_json(render_json(trace)) == trace


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(traces())
def test_any_trace_comes_back_as_it_was(trace: Trace) -> None:
    assert parse_json(render_json(trace)) == trace


def test_keys_are_in_the_order_of_the_schema() -> None:
    document = json.loads(render_json(across()))
    properties = json.loads(json_schema())["$defs"]["Trace"]["properties"]
    assert list(document) == list(properties)
    assert document["schema"] == "podwire.io/trace/v1"


def test_another_version_is_refused_by_name() -> None:
    text = render_json(across()).replace("trace/v1", "trace/v9")
    with pytest.raises(InputError, match=r"schema: 'podwire.io/trace/v9', expected"):
        parse_json(text)
    with pytest.raises(InputError, match="expected a trace"):
        parse_json("{}")


def test_the_schema_in_the_reference_is_up_to_date() -> None:
    """Else: python -m podwire.trace.render.json > docs/reference/trace.schema.json"""
    assert (REFERENCE / "trace.schema.json").read_text() == json_schema()


def test_the_example_in_the_reference_is_a_trace() -> None:
    text = (REFERENCE / "trace-json.md").read_text()
    (example,) = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    trace = parse_json(example)
    assert json.loads(render_json(trace)) == json.loads(example), "a key is missing or too many"


def test_the_reference_has_every_cause_and_outcome() -> None:
    text = (REFERENCE / "trace-json.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)
    assert set(rows) >= {*Cause, *Outcome}
