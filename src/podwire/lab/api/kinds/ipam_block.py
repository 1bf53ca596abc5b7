"""IPAMBlock (podwire.io): a block of a pool, the node that claimed it, and who has its addresses.

Agents write these; a person reads them.
"""

from __future__ import annotations

from podwire.lab.api.kinds.addresses import address, dashed, name_of, network
from podwire.lab.api.kinds.custom import custom_resource
from podwire.lab.api.kinds.meta import at
from podwire.lab.api.names import cidr, dns_subdomain, ip_address
from podwire.lab.api.registry import Column
from podwire.lab.api.schema import (
    Causes,
    Integer,
    Json,
    Listing,
    Record,
    Text,
    optional,
    required,
)


def _spec_rules(spec: dict[str, Json], path: str, causes: Causes) -> None:
    block = network(spec.get("cidr"))
    if block is None:
        return
    for index, allocation in enumerate(spec.get("allocations") or []):
        ip = address(allocation.get("ip"))
        if ip is not None and ip not in block:
            causes.invalid(f"{path}.allocations[{index}].ip", str(ip), f"must be inside of {block}")


def _block_rules(block: dict[str, Json], path: str, causes: Causes) -> None:
    # So that there can't be two objects for one block.
    name, cidr = name_of(block), network((block.get("spec") or {}).get("cidr"))
    if cidr is not None and name != dashed(cidr):
        causes.invalid("metadata.name", name, f'must be "{dashed(cidr)}", for spec.cidr {cidr}')


_ALLOCATION = Record(
    {
        "ip": required(Text(ip_address)),
        "node": required(Text(dns_subdomain)),
        "pod": optional(Text()),
        "container": optional(Text()),
        "ifname": optional(Text()),
    }
)

IPAM_BLOCK = custom_resource(
    "IPAMBlock",
    {
        "cidr": required(Text(cidr)),
        "node": optional(Text(dns_subdomain)),
        "sequence": optional(Integer(0)),
        "used": optional(Integer(0)),
        "allocations": optional(Listing(_ALLOCATION, unique=("ip",))),
    },
    (
        Column("CIDR", at("spec", "cidr")),
        Column("Node", at("spec", "node")),
        Column("Used", at("spec", "used", otherwise="0"), type="integer"),
    ),
    spec_rules=_spec_rules,
    rules=_block_rules,
    fixed=("cidr",),
)
