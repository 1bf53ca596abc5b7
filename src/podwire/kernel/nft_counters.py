"""Named counters of our nft tables, read over netlink: what was dropped, and why.

What lives here: reading them, in one round trip. What does not: making them, which is part of
their table (`nft`), and what each one means, which its `NftCounter` says.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

from podwire.kernel.netlink import NetlinkSocket, attr, attr_str, parse_attrs
from podwire.kernel.observe.nft_messages import FAMILY_NAMES
from podwire.model.state import NFT_TABLE

_GET_OBJECTS = 10 << 8 | 19
_TABLE, _NAME, _TYPE, _DATA = 1, 2, 3, 4
_COUNTER = 1  # NFT_OBJECT_COUNTER
_BYTES, _PACKETS = 1, 2
_GENERIC = struct.Struct("!BBH")  # struct nfgenmsg: family, version, resource

#: (packets, bytes) by (family, table, counter).
Counts: TypeAlias = dict[tuple[str, str, str], tuple[int, int]]


def read_counters(sock: NetlinkSocket, table: str = NFT_TABLE) -> Counts:
    """The counters of the tables of that name, whatever their family.

    `sock` is of NETLINK_NETFILTER. Raises KernelError.
    """
    kind = attr(_TYPE, struct.pack("!I", _COUNTER))
    question = _GENERIC.pack(0, 0, 0) + attr_str(_TABLE, table) + kind
    found: Counts = {}
    for body in sock.dump(_GET_OBJECTS, question):
        attrs = parse_attrs(body, _GENERIC.size)
        data = parse_attrs(attrs.get(_DATA, b""))
        name = (FAMILY_NAMES.get(body[0], ""), _text(attrs.get(_TABLE)), _text(attrs.get(_NAME)))
        found[name] = (_number(data.get(_PACKETS)), _number(data.get(_BYTES)))
    return found


def _text(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode(errors="replace")


def _number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "big")
