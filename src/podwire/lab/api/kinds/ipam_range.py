"""IPAMRange (podwire.io): where a node's part of the one big range of all pods begins.

It ends where the next one begins. Agents write these; a person reads them.
"""

from __future__ import annotations

from podwire.lab.api.kinds.addresses import address, dashed, name_of, network
from podwire.lab.api.kinds.custom import custom_resource
from podwire.lab.api.kinds.meta import at
from podwire.lab.api.names import cidr, dns_subdomain, ip_address
from podwire.lab.api.registry import Column, Object
from podwire.lab.api.schema import (
    Causes,
    Integer,
    Json,
    Listing,
    Text,
    optional,
    required,
)


def _spec_rules(spec: dict[str, Json], path: str, causes: Causes) -> None:
    first, whole = address(spec.get("first")), network(spec.get("network"))
    if first is not None and whole is not None and first not in whole:
        causes.invalid(f"{path}.first", str(first), f"must be inside of {whole}")


def _range_rules(found: dict[str, Json], path: str, causes: Causes) -> None:
    # So that there can't be two objects for one range.
    name, first = name_of(found), address((found.get("spec") or {}).get("first"))
    if first is not None and name != dashed(first):
        causes.invalid("metadata.name", name, f'must be "{dashed(first)}", for spec.first {first}')


def _asked_by(found: Object) -> str:
    return ",".join(found["spec"].get("askedBy") or []) or "<none>"


IPAM_RANGE = custom_resource(
    "IPAMRange",
    {
        "network": required(Text(cidr)),
        "first": required(Text(ip_address)),
        "node": required(Text(dns_subdomain)),
        "instance": optional(Text()),
        "sequence": optional(Integer(0)),
        "askedBy": optional(Listing(Text(dns_subdomain))),
        "giver": optional(Text()),
    },
    (
        Column("Network", at("spec", "network")),
        Column("First", at("spec", "first")),
        Column("Node", at("spec", "node")),
        Column("Asked-By", _asked_by),
    ),
    spec_rules=_spec_rules,
    rules=_range_rules,
    fixed=("network", "first"),
)
