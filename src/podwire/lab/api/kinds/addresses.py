"""Addresses and networks in specs, for rules that span several fields: None where they are wrong.

The fields' own checks have said so by then.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from podwire.lab.api.schema import Json
from podwire.model.state import IPAddress, IPNetwork


def address(value: Json) -> IPAddress | None:
    """The address that a field has."""
    found: IPAddress | None = _parsed(ipaddress.ip_address, value)
    return found


def network(value: Json) -> IPNetwork | None:
    """The network that a field has, with its prefix length."""
    if not isinstance(value, str) or "/" not in value:
        return None
    found: IPNetwork | None = _parsed(ipaddress.ip_network, value)
    return found


def name_of(obj: dict[str, Json]) -> Json:
    """The name that an object has."""
    return (obj.get("metadata") or {}).get("name")


def dashed(value: IPAddress | IPNetwork) -> str:
    """The name of the object for it: `10-32-0-0`, `172-31-4-0-26`, `fd00-10-32--0`."""
    text = str(value)
    for mark in ".:/":
        text = text.replace(mark, "-")
    return text + "0" if text.endswith("-") else text


def _parsed(parse: Any, value: Json) -> Any:
    try:
        return parse(value) if isinstance(value, str) else None
    except ValueError:
        return None
