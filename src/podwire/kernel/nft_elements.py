"""Elements of nft sets over netlink: to bytes and back, in transactions, as lines for people.

What lives here: the elements of open sets, which come and go one by one and in thousands
(include/uapi/linux/netfilter/nf_tables.h). What does not: tables with their chains, rules and
closed sets, which libnftables handles (`nft`).

A key is what the kernel compares with the packet's registers: one part as it is, or of a
concatenation each part padded to four bytes. An element over netlink costs some 5 µs in a large
transaction and 50 µs alone, a tenth of what it takes through libnftables.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from podwire.errors import KernelError
from podwire.kernel.netlink import (
    NLM_F_CREATE,
    Failure,
    NetlinkSocket,
    attr,
    attr_str,
    message,
    nested,
    parse_attrs,
)
from podwire.kernel.observe.nft_messages import (
    FAMILY_NAMES,
    batch,
    getting_tables,
    parse_table,
)
from podwire.model.state import KeyPart, NftElement, format_mac

NEW_ELEMENTS, DELETED_ELEMENTS = 10 << 8 | 12, 10 << 8 | 14
_GET_ELEMENTS = 10 << 8 | 13

FAMILIES = {name: number for number, name in FAMILY_NAMES.items()}

_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM = _ELEM_KEY = _DATA_VALUE = 1
_GENERIC = struct.Struct("!BBH")  # struct nfgenmsg: family, version, resource
_ATTR = struct.Struct("=HH")

#: A transaction is one datagram; what has no end is dropped as a whole.
_TRANSACTION_BYTES = 100 * 1024
_IFNAME_BYTES = 16

#: Bytes of a part, by its type.
_SIZES = {"ifname": _IFNAME_BYTES, "ether_addr": 6, "ipv4_addr": 4, "ipv6_addr": 16}
_SIZES["inet_service"] = 2

#: What nft takes the type of a part from where one of them has no name (`typeof`).
_EXPRESSIONS = {
    "ifname": "iifname",
    "ether_addr": "ether saddr",
    "ipv4_addr": "ip saddr",
    "ipv6_addr": "ip6 saddr",
    "inet_service": "tcp dport",
}


class ElementKey(NamedTuple):
    """An element: its set, its key as the kernel has it, and the types of the key's parts."""

    family: str
    table: str
    set: str
    data: bytes
    types: tuple[str, ...]


def types_of(text: str) -> tuple[str, ...]:
    """The parts of a set's type: `ifname . ipv4_addr`."""
    return tuple(part.strip() for part in text.split(" . "))


def declaration(text: str) -> str:
    """How a set of this type is declared to nft."""
    types = types_of(text)
    if not any(one.startswith("@") for one in types):
        return f"type {' . '.join(types)}"
    return f"typeof {' . '.join(_EXPRESSIONS.get(one, one) for one in types)}"


def listed_type(text: str) -> str:
    """The type as nft lists it: without names for parts of the payload."""
    return " . ".join("integer" if one.startswith("@") else one for one in types_of(text))


def key_of(entry: NftElement, types: tuple[str, ...]) -> ElementKey:
    """Raises ValueError where the key is not of the set's type."""
    if len(types) != len(entry.key):
        raise ValueError(
            f"element of {entry.set}: {len(entry.key)} parts, its type has {len(types)}"
        )
    if len(types) == 1:
        data = _encode(types[0], entry.key[0])
    else:
        data = b"".join(map(_encode_padded, types, entry.key))
    return ElementKey(entry.family, entry.table, entry.set, data, types)


#: What a part's Python type says of its own.
_KINDS: Mapping[type, str] = {
    str: "ifname",
    bytes: "ether_addr",
    IPv4Address: "ipv4_addr",
    IPv6Address: "ipv6_addr",
    int: "inet_service",
}


def untyped_key(entry: NftElement) -> ElementKey:
    """The same key to the kernel, for who does not know how the set was declared."""
    return key_of(entry, tuple(_KINDS[type(part)] for part in entry.key))


def _encode(kind: str, part: KeyPart) -> bytes:
    if isinstance(part, str):
        data = part.encode().ljust(_IFNAME_BYTES, b"\0")
    elif isinstance(part, int):
        data = part.to_bytes(_size(kind), "big")
    elif isinstance(part, bytes):
        data = part
    else:
        data = part.packed
    if len(data) != _size(kind) or (isinstance(part, str) is not (kind == "ifname")):
        raise ValueError(f"{part!r} is not of type {kind}")
    return data


def _encode_padded(kind: str, part: KeyPart) -> bytes:
    data = _encode(kind, part)
    return data + bytes(-len(data) % 4)


def _size(kind: str) -> int:
    """Bytes of a part; of `@th,64,128` the last number are its bits."""
    return int(kind.rpartition(",")[2]) // 8 if kind.startswith("@") else _SIZES[kind]


def text(key: ElementKey) -> str:
    """The element in nft's language: `"veth1" . 10.244.1.5`."""
    words, at = [], 0
    for kind in key.types:
        size = _size(kind)
        words.append(_decode(kind, key.data[at : at + size]))
        at += size + -size % 4
    return " . ".join(words)


def _decode(kind: str, data: bytes) -> str:
    match kind:
        case "ifname":
            name = data.rstrip(b"\0").decode(errors="replace")
            return f'"{name}"'
        case "ether_addr":
            return format_mac(data)
        case "ipv4_addr":
            return str(IPv4Address(data))
        case "ipv6_addr":
            return str(IPv6Address(data))
        case "inet_service":
            return str(int.from_bytes(data, "big"))
    return f"0x{data.hex()}"


def ifname_of(key: ElementKey) -> str:
    """The interface that the key begins with; empty where it begins with none."""
    if key.types[0] != "ifname":
        return ""
    return key.data[:_IFNAME_BYTES].rstrip(b"\0").decode(errors="replace")


def line(verb: str, key: ElementKey) -> str:
    """The command, quoted for a shell."""
    return f"nft {verb} element {key.family} {key.table} {key.set} '{{ {text(key)} }}'"


# --- messages ---------------------------------------------------------------------------------


def add(key: ElementKey) -> bytes:
    """Adding what is there already is no error."""
    return message(NEW_ELEMENTS, NLM_F_CREATE, _body(key))


def delete(key: ElementKey) -> bytes:
    return message(DELETED_ELEMENTS, 0, _body(key))


def _body(key: ElementKey) -> bytes:
    value = nested(_ELEM_KEY, attr(_DATA_VALUE, key.data))
    return _head(key.family, key.table, key.set) + nested(_LIST_ELEMENTS, nested(_LIST_ELEM, value))


@lru_cache(maxsize=64)
def _head(family: str, table: str, name: str) -> bytes:
    head = _GENERIC.pack(FAMILIES[family], 0, 0)
    return head + attr_str(_LIST_TABLE, table) + attr_str(_LIST_SET, name)


def parse_elements(payload: bytes) -> tuple[str, str, str, list[bytes]]:
    """(family, table, set, keys) of a notification or an answer about elements."""
    attrs = parse_attrs(payload, _GENERIC.size)
    return (
        FAMILY_NAMES.get(payload[0], "") if payload else "",
        _text(attrs.get(_LIST_TABLE)),
        _text(attrs.get(_LIST_SET)),
        list(_keys(attrs.get(_LIST_ELEMENTS, b""))),
    )


def _keys(data: bytes) -> Iterator[bytes]:
    offset, end = 0, len(data)
    while offset + 4 <= end:
        size, _ = _ATTR.unpack_from(data, offset)
        if size < 4 or offset + size > end:
            return
        value = parse_attrs(data[offset + 4 : offset + size]).get(_ELEM_KEY)
        if value is not None:
            yield parse_attrs(value).get(_DATA_VALUE, b"")
        offset += (size + 3) & ~3


def _text(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode(errors="replace")


# --- the kernel -------------------------------------------------------------------------------


def transact(sock: NetlinkSocket, messages: Sequence[bytes]) -> list[Failure]:
    """Send messages of this module, in order. `sock` is of NETLINK_NETFILTER.

    A transaction is all or nothing, so what the kernel refuses is left out of a second one.
    """
    failures: list[Failure] = []
    start = 0
    while start < len(messages):
        size, stop = 0, start
        while stop < len(messages) and size < _TRANSACTION_BYTES:
            size += len(messages[stop])
            stop += 1
        failures += _transaction(sock, dict(enumerate(messages[start:stop], start)))
        start = stop
    return failures


def _transaction(sock: NetlinkSocket, messages: Mapping[int, bytes]) -> list[Failure]:
    numbers = list(messages)
    found = sock.request(batch(list(messages.values())))
    # The first message of a batch is its beginning, which stands for the whole.
    if whole := next((one for one in found if one.index == 0), None):
        return [Failure(number, whole.errno, whole.text) for number in numbers]
    refused = [Failure(numbers[one.index - 1], one.errno, one.text) for one in found]
    left = {*numbers}.difference(one.index for one in refused)
    if not refused or not left:
        return refused
    return refused + _transaction(sock, {number: messages[number] for number in sorted(left)})


def read(sock: NetlinkSocket, family: str, table: str, name: str) -> list[bytes]:
    """The keys in a set; none where there is no such set."""
    try:
        dump = sock.dump(_GET_ELEMENTS, _head(family, table, name))
    except KernelError as error:
        if error.errno == 2:
            return []
        raise
    return [key for body in dump for key in parse_elements(body)[3]]


def is_there(sock: NetlinkSocket, key: ElementKey) -> bool:
    """Whether the set has this one element."""
    return sock.get(_GET_ELEMENTS, _body(key)) is not None


def tables(sock: NetlinkSocket) -> list[tuple[str, str]]:
    """(family, name) of every nft table of the namespace."""
    found = (parse_table(body) for body in sock.dump(*getting_tables()))
    return [(FAMILY_NAMES.get(family, ""), name) for family, name in found]
