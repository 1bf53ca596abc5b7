"""IPPool (podwire.io): a part of the pod network that nodes claim blocks of."""

from __future__ import annotations

from podwire.ipam.selector import ALL, parse_selector
from podwire.lab.api.kinds.addresses import network
from podwire.lab.api.kinds.custom import custom_resource
from podwire.lab.api.kinds.meta import at
from podwire.lab.api.names import cidr
from podwire.lab.api.registry import Column, Object
from podwire.lab.api.schema import (
    Boolean,
    Causes,
    Integer,
    Json,
    Text,
    optional,
    required,
)

#: Prefix lengths that a block may have, by IP version: 4 to 4,096 addresses.
_BLOCK_SIZES = {4: (20, 30), 6: (116, 126)}
_DEFAULT_BLOCK_SIZE = {4: 26, 6: 122}


def _spec_rules(spec: dict[str, Json], path: str, causes: Causes) -> None:
    pool = network(spec.get("cidr"))
    if pool is None:
        return
    size = spec.get("blockSize")
    if size is None:
        size = _DEFAULT_BLOCK_SIZE[pool.version]
    low, high = _BLOCK_SIZES[pool.version]
    if not low <= size <= high:
        causes.invalid(f"{path}.blockSize", size, f"must be {low} to {high} in IPv{pool.version}")
    elif size < pool.prefixlen:
        causes.invalid(f"{path}.blockSize", size, f"a block is larger than the pool {pool}")


def _selector(text: str) -> str | None:
    """What is wrong with a node selector."""
    try:
        parse_selector(text)
    except ValueError as error:
        return str(error)
    return None


def _prepare(pool: Object) -> None:
    found = network(pool["spec"]["cidr"])
    assert found is not None  # noqa: S101  it has been checked
    pool["spec"].setdefault("blockSize", _DEFAULT_BLOCK_SIZE[found.version])


IP_POOL = custom_resource(
    "IPPool",
    {
        "cidr": required(Text(cidr)),
        "blockSize": optional(Integer(0, 128)),
        "disabled": optional(Boolean(), default=False),
        "nodeSelector": optional(Text(_selector)),
    },
    (
        Column("CIDR", at("spec", "cidr")),
        Column("Block-Size", at("spec", "blockSize"), type="integer"),
        Column("Disabled", lambda pool: bool(pool["spec"].get("disabled")), type="boolean"),
        Column("Node-Selector", at("spec", "nodeSelector", otherwise=ALL), wide=True),
    ),
    spec_rules=_spec_rules,
    fixed=("cidr", "blockSize"),
    why_fixed="may not be changed: blocks of it are claimed; make another pool and disable this",
    prepare=_prepare,
)
