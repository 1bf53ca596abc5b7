"""Guards of pods' ports: a program at each, in traffic control of the node's end of its link.

    pod ── eth0 ══ veth… ── ingress qdisc ── filter pref 1: the program ── bridge or routing

What lives here: hanging a program there, reading which one does, and the maps of a node: what each
port lets pass, and what all of them have dropped. What does not: the program (`guard_program`).

The filter goes with its device and stays without its maker. Its name says what is let pass, so who
has lost everything else can read the addresses of a pod from it. What is compared is that name,
whose program it is, and what the map has of the port; nobody is told when a map changes, so that is
found when everything is compared. A filter takes the other's place in one step. `tc filter show dev
veth… ingress` shows it. It is classic traffic control, and not tcx (Linux 6.6), which is a little
faster, but lets every attachment and every link's end wait for a grace period of RCU, ten
milliseconds for each, while no link of the machine can be changed; and tells nobody when a program
is taken away.

Filters of others have other handles or a later preference, and are left alone. One who starts anew
finds program and maps by the filters, which hold them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from ipaddress import ip_address
from threading import Lock
from typing import NamedTuple

from podwire.errors import KernelError, PodwireError, UnsupportedError
from podwire.kernel import bpf, guard_program
from podwire.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Failure,
    NetlinkSocket,
    attr_str,
    attr_u32,
    message,
    nested,
    parse_attrs,
)
from podwire.model.state import IPAddress, PortGuard, format_mac, link_local, parse_mac

RTM_NEWTFILTER, RTM_DELTFILTER, RTM_DELQDISC = 44, 45, 37
_RTM_NEWQDISC, _RTM_GETQDISC, _RTM_GETTFILTER = 36, 38, 46
RTNLGRP_TC = 4
_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
_KIND, _OPTIONS = 1, 2
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_ID = 6, 7, 8, 11
_DIRECT_ACTION = 1
_ROOT_OF_INGRESS, _INGRESS_QDISC = 0xFFFFFFF1, 0xFFFF0000
#: The parent of filters at ingress, whether the qdisc is `ingress` or somebody else's `clsact`.
_AT_INGRESS = 0xFFFFFFF2
#: The first of all that there are; the handle is nobody else's.
PREFERENCE, HANDLE = 1, 0x7077
_INFO = PREFERENCE << 16 | socket.htons(3)  # ETH_P_ALL

#: How the program and the array are called in the kernel (bpf_prog_info, bpf_map_info).
_PROGRAM_NAME, _COUNTERS_NAME, _PORTS_NAME = "podwire_guard", "podwire_drops", "podwire_ports"
_MOST_PORTS = 65536
#: So many of them are looked up one by one.
_FEW = 16
_OURS = "podwire"
_MODES = {True: "frames", False: "packets"}
#: CLS_BPF_NAME_LEN, with the byte that ends it.
_NAME_BYTES = 256


class GuardKey(NamedTuple):
    ifindex: int


class GuardValue(NamedTuple):
    """What is let pass, as `PortGuard` has it."""

    frames: bool
    mac: bytes
    ips: tuple[IPAddress, ...]


class Found(NamedTuple):
    """Our filter at a device, by its name, and its program's id."""

    name: str
    program: int

    def lets_pass(self, value: GuardValue) -> bool:
        """Whether it is the one for this, and of this version of the program."""
        return self.name == name_of(value)


def name_of(value: GuardValue) -> str:
    """What the filter is called: `podwire VERSION frames 0a:58:0a:f4:01:02 10.244.1.2`."""
    name = _name(value, ",".join(map(str, value.ips)))
    if len(name) < _NAME_BYTES:
        return name
    packed = b"".join(ip.packed for ip in value.ips)
    return _name(value, f"#{hashlib.sha256(packed).hexdigest()}")


def _name(value: GuardValue, ips: str) -> str:
    return f"{_OURS} {_version()} {_MODES[value.frames]} {format_mac(value.mac)} {ips}"


def value_of(name: str) -> GuardValue | None:
    """What a name says, of whatever version the program is; None where it can't be read."""
    words = name.split(" ")
    if len(words) != 5 or words[0] != _OURS or words[2] not in _MODES.values():
        return None
    try:
        ips = tuple(ip_address(one) for one in words[4].split(",") if one)
        return GuardValue(words[2] == _MODES[True], parse_mac(words[3]), ips)
    except ValueError:
        return None


@cache
def _version() -> str:
    """Of the program: what has the same knows and does the same."""
    code = b"".join(guard_program.assemble(0, 0, frames=frames) for frames in _MODES)
    return hashlib.sha256(code).hexdigest()[:8]


def wire(entry: PortGuard) -> GuardValue:
    return GuardValue(entry.frames, entry.mac, entry.ips)


def line(action: str, dev: str, value: GuardValue) -> str:
    """For a person: none can type a program."""
    where = f"dev {dev} ingress pref {PREFERENCE} handle {HANDLE:#x} bpf"
    if action == "delete":
        return f"tc filter del {where}"
    return f"# tc filter replace {where} direct-action: passes {', '.join(map(str, value.ips))}"


# --- messages ---------------------------------------------------------------------------------


def _hang(index: int, program: int, value: GuardValue) -> tuple[bytes, bytes]:
    qdisc = _TCMSG.pack(0, index, _INGRESS_QDISC, _ROOT_OF_INGRESS, 0) + attr_str(_KIND, "ingress")
    options = nested(
        _OPTIONS,
        attr_u32(_BPF_FD, program),
        attr_str(_BPF_NAME, name_of(value)),
        attr_u32(_BPF_FLAGS, _DIRECT_ACTION),
    )
    head = _TCMSG.pack(0, index, HANDLE, _AT_INGRESS, _INFO) + attr_str(_KIND, "bpf")
    return (
        message(_RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, qdisc),
        message(RTM_NEWTFILTER, NLM_F_CREATE, head + options),
    )


def _take_down(index: int) -> bytes:
    head = _TCMSG.pack(0, index, HANDLE, _AT_INGRESS, _INFO)
    return message(RTM_DELTFILTER, 0, head + attr_str(_KIND, "bpf"))


def index_of(payload: bytes) -> int:
    """The device that a notification of traffic control is about."""
    index: int = _TCMSG.unpack_from(payload)[1] if len(payload) >= _TCMSG.size else 0
    return index


# --- what is there ----------------------------------------------------------------------------


def guarded(sock: NetlinkSocket) -> dict[int, Found]:
    """Our filters of the socket's namespace, by the index of the device."""
    found = {}
    try:
        qdiscs = sock.dump(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0))
    except KernelError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}  # A kernel without traffic control.
        raise
    for body in qdiscs:
        _, index, handle, _, _ = _TCMSG.unpack_from(body)
        if handle == _INGRESS_QDISC and (ours := guard_at(sock, index)) is not None:
            found[index] = ours
    return found


def guard_at(sock: NetlinkSocket, index: int) -> Found | None:
    """Our filter at one device."""
    return next((found for found in _filters(sock, index) if found.name), None)


def _filters(sock: NetlinkSocket, index: int) -> Iterable[Found]:
    """The filters at a device's ingress, those of others without a name."""
    for body in sock.dump(_RTM_GETTFILTER, _TCMSG.pack(0, index, 0, _AT_INGRESS, 0)):
        _, _, handle, _, info = _TCMSG.unpack_from(body)
        attrs = parse_attrs(body, _TCMSG.size)
        if not handle:
            continue  # The preference itself, which has no program.
        options = parse_attrs(attrs.get(_OPTIONS, b""))
        name = _text(options.get(_BPF_NAME))
        ours = handle == HANDLE and info >> 16 == PREFERENCE and name.split(" ")[0] == _OURS
        program = int.from_bytes(options.get(_BPF_ID, b""), "little")
        yield Found(name if ours else "", program)


def _text(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode(errors="replace")


# --- the kernel -------------------------------------------------------------------------------


class Guards:
    """The guards of one namespace: its programs, what they know of ports, and what they count. For
    several threads, all of them in that namespace."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counters = self._ports = -1
        self._programs: dict[bool, int] = {}

    def close(self) -> None:
        """The guards stay, with what they know and count. Twice is fine."""
        with self._lock:
            for fd in (self._counters, self._ports, *self._programs.values()):
                if fd >= 0:
                    os.close(fd)
            self._counters = self._ports = -1
            self._programs = {}

    def __enter__(self) -> Guards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self, index: int, value: GuardValue) -> tuple[bytes, bytes]:
        """What hangs a port's guard up: the place for the filter, refused with EEXIST where there
        is one, and the filter, to be sent before this ends. Raises PodwireError."""
        try:
            known = _known(value)
        except ValueError as error:
            raise UnsupportedError(
                f"no program guards {error}", remedy="start the agent with --guard nftables"
            ) from error
        with self._lock:
            program = self._program(value.frames)
            bpf.write_hash(self._ports, index, known)
        return _hang(index, program, value)

    def forget(self, index: int) -> None:
        """A port is gone, or guarded no more."""
        with self._lock:
            if self._ports >= 0:
                bpf.delete_hash(self._ports, index)

    def counts(self) -> Mapping[str, int]:
        """Packets dropped, by `guard_program.KINDS`. Raises PodwireError."""
        size = guard_program.COUNTERS_BYTES
        with self._lock:
            data = bpf.read_value(self._counters, 0, size) if self._find() else None
        numbers = struct.unpack("<5Q", data or bytes(size))
        return dict(zip(guard_program.KINDS, numbers, strict=True))

    def right(
        self, there: Mapping[int, Found], wanted: Mapping[GuardKey, GuardValue]
    ) -> frozenset[int]:
        """The ports, of those with a filter of ours, that let pass what is wanted: by the filter's
        name, by its program, and by what that knows of them. Raises PodwireError."""
        if not there:
            return frozenset()
        with self._lock:
            if not self._find() or self._ports < 0:
                return frozenset()
            programs = {frames: bpf.program_id(fd) for frames, fd in self._programs.items()}
            known = self._of_ports(there)
        return frozenset(
            index
            for index, found in there.items()
            if (value := wanted.get(GuardKey(index))) is not None
            and found.lets_pass(value)
            and _fits(value)
            and found.program == programs.get(value.frames)
            and known.get(index) == _known(value)
        )

    def _of_ports(self, there: Collection[int]) -> Mapping[int, bytes | None]:
        """What programs know of these ports, and perhaps of others."""
        size = guard_program.VALUE_BYTES
        if len(there) > _FEW:
            return bpf.read_hash(self._ports, size)
        return {index: bpf.read_value(self._ports, index, size) for index in there}

    def find(self) -> bool:
        """Whether there is an array that guards count in."""
        with self._lock:
            return self._find()

    def _program(self, frames: bool) -> int:
        if not self._find():
            self._counters = bpf.new_array(_COUNTERS_NAME, guard_program.COUNTERS_BYTES)
        if self._ports < 0:
            self._ports = bpf.new_hash(_PORTS_NAME, guard_program.VALUE_BYTES, _MOST_PORTS)
        if frames not in self._programs:
            code = guard_program.assemble(self._ports, self._counters, frames=frames)
            program = bpf.load_classifier(_PROGRAM_NAME, code, guard_program.LICENCE)
            self._programs[frames] = program
        return self._programs[frames]

    def _find(self) -> bool:
        """What guards from before know and count in."""
        if self._counters >= 0:
            return True
        with NetlinkSocket() as sock:
            there = guarded(sock)
        for found in there.values():
            with suppress(PodwireError):  # It is gone, with its device.
                self._take_over(found, there)
        return self._counters >= 0

    def _take_over(self, found: Found, there: Mapping[int, Found]) -> None:
        program = bpf.program_by_id(found.program)
        with ExitStack() as opened:
            opened.callback(os.close, program)
            if self._counters < 0:
                self._counters = _or_none(bpf.map_of_program(program, _COUNTERS_NAME))
            words = found.name.split(" ")
            frames = words[2:3] == [_MODES[True]]
            # What another version knows has another form.
            if words[1:2] != [_version()] or frames in self._programs:
                return
            if self._ports < 0:
                self._ports = _or_none(bpf.map_of_program(program, _PORTS_NAME))
                for index in bpf.hash_keys(self._ports) if self._ports >= 0 else ():
                    if index not in there:
                        bpf.delete_hash(self._ports, index)
            if self._ports >= 0:
                self._programs[frames] = program
                opened.pop_all()

    def add(self, sock: NetlinkSocket, index: int, value: GuardValue) -> Failure | None:
        """Guard a port; what guarded it before is replaced in one step."""
        try:
            failures = sock.request(self.prepare(index, value))
        except PodwireError as error:
            return Failure(0, errno.EOPNOTSUPP, error.message)
        return next((one for one in failures if one.index == 1), None)

    def remove(self, sock: NetlinkSocket, index: int) -> Failure | None:
        """Guard a port no more. The place of the filter goes with the last filter."""
        failures = sock.request([_take_down(index)])
        if not failures and not any(True for _ in _filters(sock, index)):
            head = _TCMSG.pack(0, index, _INGRESS_QDISC, _ROOT_OF_INGRESS, 0)
            sock.request([message(RTM_DELQDISC, 0, head + attr_str(_KIND, "ingress"))])
        self.forget(index)
        return failures[0] if failures else None


def _or_none(fd: int | None) -> int:
    return fd if fd is not None else -1


def _fits(value: GuardValue) -> bool:
    """Whether a program can know that much."""
    return all(
        sum(ip.version == version for ip in value.ips) <= guard_program.MOST for version in (4, 6)
    )


def _known(value: GuardValue) -> bytes:
    on_link = link_local(value.mac)
    return guard_program.value(frames=value.frames, mac=value.mac, ips=value.ips, on_link=on_link)
