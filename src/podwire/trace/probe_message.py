"""The bytes of probes: what is sent, which answer is whose, which requests make no sense.

Pure. Sending is `podwire.trace.probe`. The payload of ICMP and UDP is `MAGIC`, the prober's ident
and the probe's number (2 bytes each, network order), then zeros; an echo's identifier and
sequence are the same two. TCP's SYN carries nothing.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_address

from podwire.errors import InputError
from podwire.kernel.observe import cbpf
from podwire.model.probe import MAGIC, Probe

PAYLOAD = struct.Struct("!4sHH")  # MAGIC, ident, number
ECHO = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence (RFC 792, RFC 4443)

#: Types of echo request and reply, and bytes of the IP header, by IP version.
ECHO_REQUEST = {4: 8, 6: 128}
ECHO_REPLY = {4: 0, 6: 129}
IP_HEADER = {4: 20, 6: 40}

_UPPER_HEADER = 8  # bytes, of ICMP's echo and of UDP
_USUAL_PAYLOAD = 56  # bytes, as ping(8): 84 with IPv4's header
_MAX_PACKET = 65535
_BROADCAST = IPv4Address(0xFFFFFFFF)
_MAX_COUNT = 65535  # the number's two bytes
_MAX_TIMEOUT_S = 3600


def check(probe: Probe) -> None:
    """Raises InputError for a probe that can't be sent, whatever the network is like."""
    try:
        target = ip_address(probe.target)
    except ValueError:
        raise InputError(f"{probe.target!r} is not an IP address", field="target") from None
    if target.is_multicast or target.is_unspecified or target == _BROADCAST:
        raise InputError(f"{target} is not the address of one host", field="target")
    if target.version == 6 and target.is_link_local:
        raise InputError(f"{target} means something on one link only", field="target")
    if probe.source is not None:
        try:
            version = ip_address(probe.source).version
        except ValueError:
            raise InputError(f"{probe.source!r} is not an IP address", field="source") from None
        if version != target.version:
            raise InputError(f"{probe.source} is not of IPv{target.version}", field="source")
    if probe.protocol == "icmp":
        if probe.port is not None:
            raise InputError("ICMP has no ports", field="port")
    elif probe.port is None or not 1 <= probe.port <= 65535:
        raise InputError(f"{probe.protocol} needs a port, 1 to 65535", field="port")
    if not 1 <= probe.count <= _MAX_COUNT:
        raise InputError(f"1 to {_MAX_COUNT}, not {probe.count}", field="count")
    if not 0 < probe.timeout_s <= _MAX_TIMEOUT_S:
        text = f"more than 0 and at most {_MAX_TIMEOUT_S} seconds, not {probe.timeout_s:g}"
        raise InputError(text, field="timeout")
    if probe.size is not None:
        _check_size(probe, probe.size, target.version)


def _check_size(probe: Probe, size: int, version: int) -> None:
    if probe.protocol == "tcp":
        raise InputError("a TCP probe is a SYN, which has no size to choose", field="size")
    least = IP_HEADER[version] + _UPPER_HEADER + PAYLOAD.size
    if not least <= size <= _MAX_PACKET:
        raise InputError(
            f"the IP packet has {least} to {_MAX_PACKET} bytes, not {size}", field="size"
        )


def build(probe: Probe, ident: int, number: int) -> bytes:
    """What is written to the socket for probe `number`: for ICMP with its header."""
    version = ip_address(probe.target).version
    length = _USUAL_PAYLOAD
    if probe.size is not None:
        length = probe.size - IP_HEADER[version] - _UPPER_HEADER
    payload = PAYLOAD.pack(MAGIC, ident, number).ljust(length, b"\0")
    if probe.protocol == "udp":
        return payload
    blank = ECHO.pack(ECHO_REQUEST[version], 0, 0, ident, number) + payload
    # The kernel computes ICMPv6's checksum over whatever is there: it covers the addresses.
    return blank[:2] + struct.pack("!H", checksum(blank)) + blank[4:]


def is_echo(data: bytes, kind: int, ident: int, number: int) -> bool:
    """Whether `data`, from the ICMP header on, is that echo."""
    if len(data) < ECHO.size:
        return False
    found, _, _, identifier, sequence = ECHO.unpack_from(data)
    return (found, identifier, sequence) == (kind, ident, number)


def is_of_another(payload: bytes, ident: int, number: int) -> bool:
    """Whether a UDP payload, echoed or quoted, is that of another probe of the same prober.

    What a server answers is its own business, and a router may quote no payload at all: neither
    tells of another.
    """
    if len(payload) < PAYLOAD.size:
        return False
    magic, found, which = PAYLOAD.unpack_from(payload)
    return (magic, found) == (MAGIC, ident) and which != number


def reply_filter(version: int, ident: int) -> tuple[cbpf.Insn, ...]:
    """For a raw socket: echo replies with that identifier and nothing else."""
    asm, other = cbpf.Assembler(), cbpf.Label("other")
    asm.load_x(0)
    if version == 4:  # Raw sockets receive IPv4's header too, but not IPv6's.
        asm.load(cbpf.BYTE, 0)
        asm.compute(cbpf.AND, 0x0F)
        asm.compute(cbpf.LSH, 2)
        asm.a_to_x()
    asm.load(cbpf.BYTE, 0, indexed=True)  # type
    asm.jump_if(cbpf.JEQ, ECHO_REPLY[version], otherwise=other)
    asm.load(cbpf.HALF, 4, indexed=True)  # identifier
    asm.jump_if(cbpf.JEQ, ident, otherwise=other)
    asm.end(cbpf.ALL)
    asm.place(other)
    asm.end(0)
    return asm.assemble()


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071) of a message whose checksum field is zero."""
    padded = data + b"\0" * (len(data) & 1)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
