"""nf_tables messages: the few that make a table of our own, and the kernel's trace messages.

What lives here: bytes (include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h), sans-I/O. What
does not: which packets a table is to mark, which is `nft_match`, and the sockets, which are in
`nft_trace`.

A change is a batch: a begin message, the messages, an end message; all of it or nothing. A rule
is a list of expressions that work on registers: load a part of the packet, compare it, and at the
first comparison that fails the rule is over. Numbers are in network order, unlike in rtnetlink.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from podwire.kernel.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    attr,
    attr_str,
    message,
    nested,
    parse_attrs,
)

NFNLGRP_NFTRACE = 9

#: NFPROTO_… (linux/netfilter.h) and nft's words for them.
INET, IPV4, ARP, NETDEV, BRIDGE, IPV6 = 1, 2, 3, 5, 7, 10
FAMILY_NAMES = {
    INET: "inet",
    IPV4: "ip",
    ARP: "arp",
    NETDEV: "netdev",
    BRIDGE: "bridge",
    IPV6: "ip6",
}

#: What a payload expression counts its offset from.
NETWORK, TRANSPORT = 1, 2
#: Keys of a meta expression.
META_PROTOCOL, META_L4PROTO = 1, 16
#: Comparisons.
EQUAL, NOT_EQUAL, LESS, NOT_GREATER, GREATER, NOT_LESS = range(6)

_NFNL_SUBSYS_NFTABLES = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _GETTABLE, _NEWCHAIN, _NEWRULE, _GETGEN, _TRACE = 0, 1, 3, 6, 16, 17
_TABLE_OWNER = 2  # NFT_TABLE_F_OWNER: the table goes with the socket that made it (Linux 5.12)

_LIST_ELEM = 1
_REGISTER = 1  # NFT_REG_1, of 16 bytes
_REGISTER_BYTES = 16
_META_NFTRACE = 12
_JUMP, _GOTO = -3, -4
_ACCEPT = 1
_VERDICTS = {
    0: "drop",
    1: "accept",
    2: "stolen",
    3: "queue",
    4: "repeat",
    -1: "continue",
    -2: "break",
    -3: "jump",
    -4: "goto",
    -5: "return",
}
#: The lower bits of a kernel verdict; above them are an errno, a drop reason or a queue's number.
_VERDICT_MASK = 0xFF

_GENERIC = struct.Struct("!BBH")  # struct nfgenmsg: family, version, resource


def getting_tables() -> tuple[int, bytes]:
    """Type and payload of a dump of all tables."""
    return _type(_GETTABLE), _GENERIC.pack(0, 0, 0)


def parse_table(payload: bytes) -> tuple[int, str]:
    """(family, name) of a table in that dump."""
    return payload[0], _text(parse_attrs(payload, _GENERIC.size).get(1, b""))


def getting_generation() -> tuple[int, bytes]:
    """Type and payload of the question for the ruleset's generation."""
    return _type(_GETGEN), _GENERIC.pack(0, 0, 0)


def parse_generation(payload: bytes) -> int:
    """It changes with each change of the ruleset."""
    return int.from_bytes(parse_attrs(payload, _GENERIC.size).get(1, b""), "big")


# --- a table of our own -----------------------------------------------------------------------


def batch(messages: Sequence[bytes]) -> list[bytes]:
    """The messages as one transaction, for `NetlinkSocket.request`.

    The end rides on the last message: kernels before 6.10 do not acknowledge it, and the socket
    waits for the acknowledgement of whatever is last.
    """
    about = _GENERIC.pack(0, 0, _NFNL_SUBSYS_NFTABLES)
    begin, end = message(_BATCH_BEGIN, 0, about), message(_BATCH_END, 0, about)
    return [begin, *messages[:-1], messages[-1] + end]


def new_table(family: int, name: str) -> bytes:
    """A table that nobody else can change, and that goes with the socket that makes it."""
    attrs = attr_str(1, name) + _be32(2, _TABLE_OWNER)
    return _request(_NEWTABLE, family, NLM_F_CREATE | NLM_F_EXCL, attrs)


def new_chain(
    family: int, table: str, name: str, *, hook: int | None = None, priority: int = 0
) -> bytes:
    """A chain; with `hook` (NF_INET_…, NF_BR_…, NF_ARP_…) a base chain that accepts by policy."""
    attrs = attr_str(1, table) + attr_str(3, name)
    if hook is not None:
        where = _be32(1, hook) + attr(2, struct.pack("!i", priority))
        attrs += nested(4, where) + _be32(5, _ACCEPT) + attr_str(7, "filter")
    return _request(_NEWCHAIN, family, NLM_F_CREATE, attrs)


def new_rule(family: int, table: str, chain: str, expressions: Sequence[bytes]) -> bytes:
    """A rule at the end of a chain."""
    attrs = attr_str(1, table) + attr_str(2, chain) + nested(4, *expressions)
    return _request(_NEWRULE, family, NLM_F_CREATE | NLM_F_APPEND, attrs)


def load(base: int, offset: int, length: int) -> bytes:
    """Part of the packet into the register; where the packet is shorter, the rule is over."""
    return _expression(
        "payload", _be32(1, _REGISTER), _be32(2, base), _be32(3, offset), _be32(4, length)
    )


def load_meta(key: int) -> bytes:
    return _expression("meta", _be32(1, _REGISTER), _be32(2, key))


def mask(value: bytes) -> bytes:
    """The register and `value`, bit by bit."""
    return _expression(
        "bitwise",
        _be32(1, _REGISTER),
        _be32(2, _REGISTER),
        _be32(3, len(value)),
        nested(4, attr(1, value)),
        nested(5, attr(1, bytes(len(value)))),
    )


def compare(operation: int, value: bytes) -> bytes:
    """The rule goes on if the register compares so with `value`."""
    return _expression("cmp", _be32(1, _REGISTER), _be32(2, operation), nested(3, attr(1, value)))


def equals(base: int, offset: int, value: bytes) -> tuple[bytes, ...]:
    """The rule goes on if this is in the packet there."""
    pieces = [value[at : at + _REGISTER_BYTES] for at in range(0, len(value), _REGISTER_BYTES)]
    return tuple(
        one
        for number, piece in enumerate(pieces)
        for one in (
            load(base, offset + number * _REGISTER_BYTES, len(piece)),
            compare(EQUAL, piece),
        )
    )


def meta_equals(key: int, value: bytes) -> tuple[bytes, ...]:
    return load_meta(key), compare(EQUAL, value)


def jump(chain: str) -> bytes:
    return _verdict(_JUMP, attr_str(2, chain))


def goto(chain: str) -> bytes:
    return _verdict(_GOTO, attr_str(2, chain))


def accept() -> bytes:
    return _verdict(_ACCEPT)


def set_nftrace() -> tuple[bytes, ...]:
    """From here on the kernel tells of each rule that the packet meets in this namespace."""
    one = _expression("immediate", _be32(1, _REGISTER), nested(2, attr(1, b"\1")))
    return one, _expression("meta", _be32(2, _META_NFTRACE), _be32(3, _REGISTER))


# --- what the kernel tells --------------------------------------------------------------------


class TraceMessage(NamedTuple):
    """A rule that the packet met (`kind` rule), a chain that it left (return), or a policy.

    `id` is the same for a packet as long as it is in one hook. `verdict` names the chain of a
    jump or goto. The interfaces and the headers are in the first message of each base chain only:
    0 and empty in those after it; `data` are the network header and at most 20 bytes of the next.
    `mark` is the packet's by then.
    """

    id: int
    kind: str
    family: int
    table: str
    chain: str
    handle: int
    verdict: str
    iif: int
    oif: int
    mark: int
    data: bytes


_KINDS = {1: "policy", 2: "return", 3: "rule"}


def parse_trace(kind: int, payload: bytes) -> TraceMessage | None:
    """A notification of group NFNLGRP_NFTRACE; None for any other or a malformed one."""
    if kind != _type(_TRACE) or len(payload) < _GENERIC.size:
        return None
    attrs = parse_attrs(payload, _GENERIC.size)

    def number(which: int) -> int:
        return int.from_bytes(attrs.get(which, b""), "big")

    what = _KINDS.get(number(4))
    if what is None:
        return None
    if what == "policy":
        verdict = _VERDICTS.get(number(16), "")
    else:
        verdict = _verdict_text(attrs.get(5, b""))
    return TraceMessage(
        id=number(6),
        kind=what,
        family=payload[0],
        table=_text(attrs.get(1, b"")),
        chain=_text(attrs.get(2, b"")),
        handle=number(3),
        verdict=verdict,
        iif=number(10),
        oif=number(12),
        mark=number(14),
        # Of an IPv6 fragment without transport header the kernel takes that to be at 0, where the
        # network header is, and leaves no room for the latter.
        data=attrs.get(8, b"") + attrs.get(9, b""),
    )


def _verdict_text(data: bytes) -> str:
    attrs = parse_attrs(data)
    code = int.from_bytes(attrs.get(1, b""), "big", signed=True)
    word = _VERDICTS.get(code if code < 0 else code & _VERDICT_MASK, "")
    return f"{word} {_text(attrs[2])}" if 2 in attrs else word


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _type(kind: int) -> int:
    return _NFNL_SUBSYS_NFTABLES << 8 | kind


def _request(kind: int, family: int, flags: int, attrs: bytes) -> bytes:
    return message(_type(kind), flags, _GENERIC.pack(family, 0, 0) + attrs)


def _expression(name: str, *attrs: bytes) -> bytes:
    return nested(_LIST_ELEM, attr_str(1, name), nested(2, *attrs))


def _verdict(code: int, *more: bytes) -> bytes:
    verdict = nested(2, attr(1, struct.pack("!i", code)), *more)
    return _expression("immediate", _be32(1, 0), nested(2, verdict))


def _be32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("!I", value))
