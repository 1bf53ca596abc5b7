"""A Trace as a JSON document, and the document's schema.

What lives here: `render_json`, its inverse, and `json_schema`, which docs/reference holds a copy
of. What does not: names and meanings, which are those of `podwire.trace.model`.

    python -m podwire.trace.render.json > docs/reference/trace.schema.json
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from podwire.decoding import decode
from podwire.errors import InputError
from podwire.trace.model import SCHEMA, Trace


def render_json(trace: Trace) -> str:
    """The trace as indented JSON; the keys are in the order of the schema, always."""
    return msgspec.json.format(msgspec.json.encode(trace), indent=2).decode() + "\n"


def parse_json(text: str | bytes) -> Trace:
    """The trace that `render_json` wrote. Raises `InputError` for anything else."""
    trace = decode(
        text,
        Trace,
        field="trace",
        expected=f"a trace of {SCHEMA}",
        remedy="write one with `podwire trace -o json`",
    )
    if trace.schema != SCHEMA:
        raise InputError(f"{trace.schema!r}, expected {SCHEMA!r}", field="schema")
    return trace


def json_schema() -> str:
    """JSON Schema (2020-12) of the document."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A trace, {SCHEMA}",
        **_described(msgspec.json.schema(Trace)),
    }
    return msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n"


def _described(node: dict[str, Any]) -> dict[str, Any]:
    """The schema with its descriptions, which are docstrings, as plain paragraphs."""
    for key, value in node.items():
        if key == "description":
            paragraphs = inspect.cleandoc(value).split("\n\n")
            node[key] = "\n\n".join(" ".join(one.split()) for one in paragraphs)
        elif isinstance(value, dict):
            _described(value)
    return node


if __name__ == "__main__":
    print(json_schema(), end="")
