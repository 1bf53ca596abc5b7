"""Guards of pods' ports: a program at each, in the traffic control of the node's end of its link.

    pod ── eth0 ══ veth… ── ingress qdisc ── filter pref 1: the program ── bridge or routing

What lives here: hanging a program there, reading which one does, and the array that all of a node
count their drops in. What does not: the program (`guard_program`).

The filter goes with its device and stays without its maker. Its name says what its program lets
pass, so a name is all that has to be compared; who has lost everything else can read the addresses
of a pod from it. A filter takes the other's place in one step. `tc filter show dev veth… ingress`
shows it. It is classic traffic control, and not tcx (Linux 6.6), which is a little faster, but lets
every attachment and every link's end wait for a grace period of RCU, ten milliseconds for each,
while no link of the machine can be changed; and tells nobody when a program is taken away.

Filters of others have other handles or a later preference, and are left alone. The counters are
found again through any of the programs, which hold them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from ipaddress import IPv6Address, ip_address
from threading import Lock
from typing import NamedTuple

from podwire.errors import PodwireError
from podwire.kernel import bpf, guard_program
from podwire.kernel.messages import link_local
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
from podwire.model.state import IPAddress, PortGuard, format_mac, parse_mac

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
_PROGRAM_NAME, _MAP_NAME = "podwire_guard", "podwire_drops"
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
    """Of the program: the same instructions for the same pod have the same."""
    code = b"".join(_code(0, GuardValue(frames, bytes(6), _SAMPLE)) for frames in _MODES)
    return hashlib.sha256(code).hexdigest()[:8]


_SAMPLE = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))


def wire(entry: PortGuard) -> GuardValue:
    return GuardValue(entry.frames, entry.mac, entry.ips)


def line(action: str, dev: str, value: GuardValue) -> str:
    """For a person: none can type a program."""
    where = f"dev {dev} ingress pref {PREFERENCE} handle {HANDLE:#x} bpf"
    if action == "delete":
        return f"tc filter del {where}"
    return f"# tc filter replace {where} direct-action: passes {', '.join(map(str, value.ips))}"


# --- messages ---------------------------------------------------------------------------------


def hang(index: int, program: int, value: GuardValue) -> tuple[bytes, bytes]:
    """The place for the filter, refused with EEXIST where there is one, and the filter."""
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
    for body in sock.dump(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0)):
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
    """The guards of one namespace: loads programs, and has what they count. For several threads,
    all of them in that namespace."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counters = -1
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="guards")

    def close(self) -> None:
        """The guards stay, and with them what they count. Twice is fine."""
        self._loader.shutdown()
        with self._lock:
            if self._counters >= 0:
                os.close(self._counters)
            self._counters = -1

    def __enter__(self) -> Guards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def loading(self, value: GuardValue) -> Iterator[Future[int]]:
        """The program's descriptor, as long as this lasts. While the kernel checks the program, for
        some 0.3 ms, something else can be done."""
        coming = self._loader.submit(self.load, value)
        try:
            yield coming
        finally:
            with suppress(PodwireError):
                os.close(coming.result())

    def load(self, value: GuardValue) -> int:
        """The program's descriptor. Raises PodwireError."""
        with self._lock:
            if not self._find():
                self._counters = bpf.new_array(_MAP_NAME, guard_program.COUNTERS_BYTES)
            code = _code(self._counters, value)
        return bpf.load_classifier(_PROGRAM_NAME, code, guard_program.LICENCE)

    def counts(self) -> Mapping[str, int]:
        """Packets dropped, by `guard_program.KINDS`. Raises PodwireError."""
        with self._lock:
            if not self._find():
                return dict.fromkeys(guard_program.KINDS, 0)
            data = bpf.read_array(self._counters, guard_program.COUNTERS_BYTES)
        return dict(zip(guard_program.KINDS, struct.unpack("<5Q", data), strict=True))

    def find(self) -> bool:
        """Whether there is an array that guards count in."""
        with self._lock:
            return self._find()

    def _find(self) -> bool:
        if self._counters >= 0:
            return True
        with NetlinkSocket() as sock:
            for found in guarded(sock).values():
                try:
                    fd = bpf.map_of_program(found.program, _MAP_NAME)
                except PodwireError:
                    continue  # It is gone, with its device.
                if fd is not None:
                    self._counters = fd
                    return True
        return False

    def add(self, sock: NetlinkSocket, index: int, value: GuardValue) -> Failure | None:
        """Guard a port; what guarded it before is replaced in one step."""
        try:
            program = self.load(value)
        except PodwireError as error:
            return Failure(0, errno.EOPNOTSUPP, error.message)
        try:
            failures = sock.request(hang(index, program, value))
        finally:
            os.close(program)
        return next((one for one in failures if one.index == 1), None)


def remove(sock: NetlinkSocket, index: int) -> Failure | None:
    """Guard a port no more. The place of the filter goes with the last filter."""
    failures = sock.request([_take_down(index)])
    if not failures and not any(True for _ in _filters(sock, index)):
        head = _TCMSG.pack(0, index, _INGRESS_QDISC, _ROOT_OF_INGRESS, 0)
        sock.request([message(RTM_DELQDISC, 0, head + attr_str(_KIND, "ingress"))])
    return failures[0] if failures else None


def _code(counters: int, value: GuardValue) -> bytes:
    on_link = IPv6Address(link_local(value.mac))
    return guard_program.assemble(
        counters, frames=value.frames, mac=value.mac, ips=value.ips, on_link=on_link
    )
