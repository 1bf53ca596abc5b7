"""The manifest for a cluster: its custom resources are those that the lab's API serves.

A real API server drops fields that a CRD does not know, so one that is missing there is lost
without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from podwire.lab.api.kinds.ip_pool import IP_POOL
from podwire.lab.api.kinds.ipam_block import IPAM_BLOCK
from podwire.lab.api.kinds.ipam_range import IPAM_RANGE
from podwire.lab.api.registry import ResourceKind
from podwire.lab.api.schema import Boolean, Integer, Listing, Record, Schema, Text

MANIFEST = Path(__file__).resolve().parents[2] / "deploy/podwire.yaml"


def outline(schema: Schema) -> Any:
    """Types, fields and which of them are required, as OpenAPI has them."""
    match schema:
        case Record(fields=fields):
            found: dict[str, Any] = {"type": "object"}
            if fields:
                found["properties"] = {name: outline(one.schema) for name, one in fields.items()}
            if needed := sorted(name for name, one in fields.items() if one.required):
                found["required"] = needed
            return found
        case Listing(item=item):
            return {"type": "array", "items": outline(item)}
    return {"type": {Text: "string", Integer: "integer", Boolean: "boolean"}[type(schema)]}


def shape(schema: dict[str, Any]) -> Any:
    """The same of a CRD's schema."""
    found = {"type": schema["type"]}
    if "properties" in schema:
        found["properties"] = {name: shape(one) for name, one in schema["properties"].items()}
    if "required" in schema:
        found["required"] = sorted(schema["required"])
    if "items" in schema:
        found["items"] = shape(schema["items"])
    return found


@pytest.mark.parametrize("kind", [IP_POOL, IPAM_BLOCK, IPAM_RANGE], ids=lambda one: one.kind)
def test_custom_resources_are_what_agents_write(kind: ResourceKind) -> None:
    (found,) = (
        document["spec"]
        for document in yaml.safe_load_all(MANIFEST.read_text())
        if document["metadata"]["name"] == f"{kind.plural}.{kind.group}"
    )
    assert found["names"] == {
        "kind": kind.kind,
        "listKind": f"{kind.kind}List",
        "plural": kind.plural,
        "singular": kind.singular,
    }
    assert found["scope"] == ("Namespaced" if kind.namespaced else "Cluster")
    (version,) = found["versions"]
    assert version["name"] == kind.version
    assert isinstance(kind.schema, Record)
    spec = shape(version["schema"]["openAPIV3Schema"])["properties"]["spec"]
    assert spec == outline(kind.schema.fields["spec"].schema)
