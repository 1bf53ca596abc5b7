"""What nodes publish for their peers, in whichever store: addresses, VTEPs' MACs and keys, checked.

What lives here: texts to values, refused with the field that they stand in. What does not: where a
store has them (`nodes`, `etcd.values`).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress

from podwire.errors import InputError
from podwire.model.state import IPAddress, parse_interface_mac

_LIMITED_BROADCAST = ipaddress.IPv4Address("255.255.255.255")

#: Of X25519 (RFC 7748).
_KEY_BYTES = 32


def parse_endpoint(text: str, version: int, field: str, remedy: str | None = None) -> IPAddress:
    """The address, of that IP version, that packets for one node go to. Raises InputError."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        raise InputError(f"{text!r} is not an IP address", field=field, remedy=remedy) from None
    if ip.version != version:
        raise InputError(f"{text} is not an IPv{version} address", field=field, remedy=remedy)
    if ip.is_multicast or ip.is_unspecified or ip.is_loopback or ip == _LIMITED_BROADCAST:
        raise InputError(f"{ip} is not an address of one node", field=field, remedy=remedy)
    return ip


def parse_vtep_mac(text: str, field: str) -> bytes:
    """Raises InputError. The zero address in an FDB is every unknown one, so none may claim it."""
    try:
        return parse_interface_mac(text)
    except ValueError as error:
        raise InputError(str(error), field=field) from None


def parse_public_key(text: str, field: str) -> bytes:
    """The key of a node's tunnel. Raises InputError."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise InputError(f"{text!r} is not {_KEY_BYTES} bytes in base64", field=field)
    return key
