"""The rules of iptables-legacy, which nft does not show: read from the kernel, in nft's terms.

What lives here: the layouts of include/uapi/linux/netfilter_ipv4/ip_tables.h, its IPv6 sibling and
the few extensions that decide over whole networks (udp, tcp, multiport, conntrack, mark, comment).
What does not: what the rules do, which is `podwire.kernel.ruling`.

A table is asked for only where it is there already: to ask for one makes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from podwire.errors import KernelError
from podwire.kernel.rules import Chain, Rule

_SO_GET_INFO, _SO_GET_ENTRIES = 64, 65
_NAME_SIZE = 32
_INFO = struct.Struct("=32sI5I5III")  # name, valid hooks, entry points, underflows, entries, size
_ENTRIES_HEAD = 40
_EXTENSION = struct.Struct("=H29sB")  # size, name, revision (xt_entry_match, xt_entry_target)

_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
#: include/uapi/linux/netfilter_ipv4.h, by table.
_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
_DROP, _ACCEPT, _QUEUE, _RETURN = -1, -2, -4, -5

_ATTEMPTS = 10

# ipt_ip.invflags and .flags
_INV_IIF, _INV_OIF, _INV_SOURCE, _INV_TARGET, _INV_PROTOCOL = 0x01, 0x02, 0x08, 0x10, 0x40
_FRAGMENTS, _INV_FRAGMENTS = 0x01, 0x20
_GOTO = {4: 0x02, 6: 0x04}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp"}

#: xt_conntrack_mtinfo2 and 3: where the flags of what is matched and the mask of states are.
_CT_FLAGS, _CT_STATES, _CT_MATCH_STATE = 146, 150, 0x01
_STATES = {0x01: "invalid", 0x02: "established", 0x04: "related", 0x08: "new", 0x100: "untracked"}

_libc = ctypes.CDLL(None, use_errno=True)


class _Layout(NamedTuple):
    """Where in an entry things are; they differ by the size of an address."""

    family: str
    domain: int
    level: int
    tables: str
    address: int
    flags: int  # of the IP part; inverted ones follow
    offsets: int
    elements: int


_LAYOUTS = {
    4: _Layout("ip", socket.AF_INET, socket.IPPROTO_IP, "ip_tables_names", 4, 82, 88, 112),
    6: _Layout("ip6", socket.AF_INET6, socket.IPPROTO_IPV6, "ip6_tables_names", 16, 131, 140, 168),
}


def legacy_chains(version: Literal[4, 6]) -> list[Chain]:
    """All chains of the tables that filter, their rules' expressions as nft would have them.

    Raises KernelError.
    """
    layout = _LAYOUTS[version]
    try:
        names = (Path("/proc/net") / layout.tables).read_text().split()
    except OSError:
        return []
    found: list[Chain] = []
    for name in sorted(set(names) & _PRIORITIES.keys()):
        found += _table(version, layout, name)
    return found


def _table(version: int, layout: _Layout, name: str) -> Iterator[Chain]:
    with socket.socket(layout.domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 255) as sock:
        for attempt in range(_ATTEMPTS):
            try:
                info, data = _entries(sock, layout, name)
                break
            except KernelError as error:
                # Somebody has changed the table between the two questions.
                if error.errno != errno.EAGAIN or attempt == _ATTEMPTS - 1:
                    raise
    valid, entry_points, underflows = info[1], info[2:7], info[7:12]
    starts = {
        entry_points[hook]: (name_, hook)
        for hook, name_ in enumerate(one.upper() for one in _HOOKS)
        if valid >> hook & 1
    }
    policies = {underflows[hook] for hook in range(5) if valid >> hook & 1}
    yield from _Reader(version, layout, name, data).chains(starts, policies)


def _entries(sock: socket.socket, layout: _Layout, name: str) -> tuple[tuple[Any, ...], bytes]:
    """struct ipt_getinfo of a table, and its entries."""
    head = name.encode().ljust(_NAME_SIZE, b"\0")
    info = _INFO.unpack(_ask(sock, layout, _SO_GET_INFO, head.ljust(_INFO.size, b"\0")))
    size = info[13]
    question = head + struct.pack("=I4x", size) + bytes(size)
    return info, _ask(sock, layout, _SO_GET_ENTRIES, question)[_ENTRIES_HEAD:]


def _ask(sock: socket.socket, layout: _Layout, option: int, question: bytes) -> bytes:
    """getsockopt(2) with something in the buffer, which Python's can't."""
    buffer = ctypes.create_string_buffer(question, len(question))
    length = ctypes.c_uint32(len(question))
    done = _libc.getsockopt(sock.fileno(), layout.level, option, buffer, ctypes.byref(length))
    if done != 0:
        number = ctypes.get_errno()
        raise KernelError(f"read iptables-legacy: {os.strerror(number)}", errno=number)
    return buffer.raw


class _Reader:
    """A table's entries, one after the other: rules, and an ERROR target before each chain."""

    def __init__(self, version: int, layout: _Layout, table: str, data: bytes) -> None:
        self._version = version
        self._layout = layout
        self._table = table
        self._data = data

    def chains(self, starts: Mapping[int, tuple[str, int]], policies: set[int]) -> Iterator[Chain]:
        """`starts` are the offsets of built-in chains, `policies` of the entries that end them."""
        offsets = list(self._offsets())
        names = {
            offset + self._entry(offset)[1]: name
            for offset in offsets
            if (name := self._error_name(offset)) is not None
        }
        current: Chain | None = None
        rules: list[Rule] = []
        for offset in offsets:
            if self._error_name(offset) is not None:
                if current is not None:
                    yield current
                current = None
                continue
            if offset in starts or offset in names:
                if current is not None:
                    yield current
                rules = []
                current = self._chain(starts.get(offset), names.get(offset, ""), rules)
            if offset in policies and current is not None:
                policy = "drop" if self._verdict(offset) == _DROP else "accept"
                yield msgspec.structs.replace(current, policy=policy)
                current = None
            elif current is not None:
                rules.append(self._rule(offset, names, len(rules) + 1))

    def _chain(self, start: tuple[str, int] | None, name: str, rules: list[Rule]) -> Chain:
        return Chain(
            family=self._layout.family,
            table=self._table,
            name=start[0] if start else name,
            rules=rules,
            kind="filter" if start else "",
            hook=_HOOKS[start[1]] if start else "",
            priority=_PRIORITIES[self._table],
            legacy=True,
        )

    def _offsets(self) -> Iterator[int]:
        offset = 0
        while offset + self._layout.elements <= len(self._data):
            yield offset
            offset += self._entry(offset)[1]

    def _entry(self, offset: int) -> tuple[int, int]:
        """Where the entry's target is, and where the next entry."""
        target, following = struct.unpack_from("=HH", self._data, offset + self._layout.offsets)
        return target, max(following, self._layout.elements)

    def _target(self, offset: int) -> tuple[str, bytes]:
        at = offset + self._entry(offset)[0]
        size, name, _ = _EXTENSION.unpack_from(self._data, at)
        return _text(name), self._data[at + _EXTENSION.size : at + size]

    def _error_name(self, offset: int) -> str | None:
        """The name of the chain that begins after this entry."""
        name, data = self._target(offset)
        return _text(data) if name == "ERROR" else None

    def _verdict(self, offset: int) -> int:
        return int.from_bytes(self._target(offset)[1][:4], sys.byteorder, signed=True)

    def _rule(self, offset: int, names: Mapping[int, str], number: int) -> Rule:
        expr = [*self._addresses(offset), *self._matches(offset)]
        name, _ = self._target(offset)
        if name:
            expr.append({"xt": {"type": "target", "name": name}})
            words = name
        else:
            verdict = self._verdict(offset)
            following = offset + self._entry(offset)[1]
            kind, words = _KINDS.get(verdict, ("", ""))
            if kind:
                expr.append({kind: None})
            elif verdict != following:  # Not a rule that only counts.
                flags = self._data[offset + self._layout.flags]
                kind = "goto" if flags & _GOTO[self._version] else "jump"
                words = names.get(verdict, "?")
                expr.append({kind: {"target": words}})
        return Rule(tuple(expr), f"rule {number}{f', -j {words}' if words else ''}", number)

    def _addresses(self, offset: int) -> Iterator[dict[str, Any]]:
        """struct ipt_ip: addresses, masks, interfaces with masks, protocol."""
        data, size, layout = self._data, self._layout.address, self._layout
        inverted = data[offset + layout.flags + 1]
        parts = [data[offset + n * size : offset + (n + 1) * size] for n in range(4)]
        for part, mask, field, bit in (
            (parts[0], parts[2], "saddr", _INV_SOURCE),
            (parts[1], parts[3], "daddr", _INV_TARGET),
        ):
            if any(mask) or inverted & bit:
                length = int.from_bytes(mask, "big").bit_count()
                network = ip_network((ip_address(part), length), strict=False)
                prefix = {"addr": str(network.network_address), "len": length}
                left = {"payload": {"protocol": layout.family, "field": field}}
                yield _match(left, {"prefix": prefix}, inverted & bit)
        at = offset + 4 * size
        for index, (key, bit) in enumerate((("iifname", _INV_IIF), ("oifname", _INV_OIF))):
            device = _text(data[at + 16 * index : at + 16 * index + 16])
            mask = data[at + 32 + 16 * index : at + 48 + 16 * index]
            if any(mask):
                # The mask of a whole name goes one further, over its end; that of `eth+` does not.
                if sum(map(bool, mask)) < len(device) + 1:
                    device = device.rstrip("+") + "*"
                yield _match({"meta": {"key": key}}, device, inverted & bit)
        if self._version == 4 and data[offset + layout.flags] & _FRAGMENTS:
            # What is judged here are whole packets.
            whole = {"meta": {"key": "nfproto"}}
            yield _match(whole, "ipv4", not inverted & _INV_FRAGMENTS)
        (protocol,) = struct.unpack_from("=H", data, at + 64)
        if protocol:
            name = _PROTOCOLS.get(protocol, str(protocol))
            yield _match({"meta": {"key": "l4proto"}}, name, inverted & _INV_PROTOCOL)

    def _matches(self, offset: int) -> Iterator[dict[str, Any]]:
        at, end = offset + self._layout.elements, offset + self._entry(offset)[0]
        while at + _EXTENSION.size <= end:
            size, name, revision = _EXTENSION.unpack_from(self._data, at)
            if size < _EXTENSION.size:
                return
            data = self._data[at + _EXTENSION.size : at + size]
            yield from _extension(_text(name), revision, data)
            at += size


def _extension(name: str, revision: int, data: bytes) -> Iterator[dict[str, Any]]:
    """An extension as nft would have it; as one that can't be read where it is not known here."""
    match name:
        case "comment":
            return
        case "udp" | "tcp":  # struct xt_udp, xt_tcp: ranges of ports, and what is inverted.
            low, high, to_low, to_high = struct.unpack_from("=4H", data)
            inverted = data[8] if name == "udp" else data[11]
            if name == "tcp" and any(data[8:10]):  # Options and flags, which a flow has not.
                yield {"xt": {"type": "match", "name": name}}
            for field, ports, bit in (("sport", (low, high), 1), ("dport", (to_low, to_high), 2)):
                if ports != (0, 0xFFFF):
                    left = {"payload": {"protocol": name, "field": field}}
                    yield _match(left, {"range": list(ports)}, inverted & bit)
        case "multiport" if revision == 1:  # struct xt_multiport_v1
            flags, count = data[0], data[1]
            ports = struct.unpack_from("=15H", data, 2)[:count]
            ranged, inverted = data[32 : 32 + count], data[47]
            if flags > 1:  # Either of the two.
                yield {"xt": {"type": "match", "name": name}}
                return
            elements: list[Any] = []
            for index, port in enumerate(ports):
                if index and ranged[index - 1]:
                    elements[-1] = {"range": [ports[index - 1], port]}
                else:
                    elements.append(port)
            left = {"payload": {"protocol": "th", "field": ("sport", "dport")[flags]}}
            yield _match(left, {"set": elements}, inverted)
        case "mark" if revision == 1:  # struct xt_mark_mtinfo1
            mark, mask, inverted = struct.unpack_from("=IIB", data)
            yield _match({"&": [{"meta": {"key": "mark"}}, mask]}, mark, inverted)
        case "conntrack" if revision in (2, 3):
            flags, inverted_flags, states = struct.unpack_from("=HHH", data, _CT_FLAGS)
            if flags != _CT_MATCH_STATE:
                yield {"xt": {"type": "match", "name": name}}
                return
            names = [word for bit, word in _STATES.items() if states & bit]
            yield _match({"ct": {"key": "state"}}, names, inverted_flags & _CT_MATCH_STATE)
        case _:
            yield {"xt": {"type": "match", "name": name}}


def _match(left: Mapping[str, Any], right: Any, inverted: int) -> dict[str, Any]:
    return {"match": {"op": "!=" if inverted else "==", "left": left, "right": right}}


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="replace")


_KINDS = {
    _DROP: ("drop", "DROP"),
    _ACCEPT: ("accept", "ACCEPT"),
    _QUEUE: ("queue", "QUEUE"),
    _RETURN: ("return", "RETURN"),
}
