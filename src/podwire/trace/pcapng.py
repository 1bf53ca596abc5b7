"""pcapng: captures of many interfaces in one stream, as Wireshark and tshark read them.

What lives here: the file format (draft-ietf-opsawg-pcapng), as bytes for the caller to write
wherever they go. What does not: which packets, and what they are called.

    section header │ names │ interface 0 │ packet │ interface 1 │ packet │ … │ statistics

A stream may be cut off anywhere between blocks and is a capture all the same. An interface is
described before its first packet, which may be late in the stream, and is numbered by its place
among the interfaces. Times are in nanoseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address

from podwire.model.probe import IPText

_SECTION, _INTERFACE, _NAMES, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 4, 5, 6
_BYTE_ORDER = 0x1A2B3C4D
_UNKNOWN_LENGTH = 0xFFFFFFFFFFFFFFFF

# Options (sections 3.5, 4.1, 4.2, 4.3 and 4.6 of the draft).
_END, _COMMENT = 0, 1
_SECTION_HARDWARE, _SECTION_OS, _SECTION_APPLICATION = 2, 3, 4
_IF_NAME, _IF_DESCRIPTION, _IF_MAC, _IF_TSRESOL, _IF_FILTER = 2, 3, 6, 9, 11
_PACKET_FLAGS, _PACKET_DROPS = 2, 4
_STATISTICS_RECEIVED, _STATISTICS_DROPS, _STATISTICS_END = 4, 5, 3
_NAME_IPV4, _NAME_IPV6 = 1, 2

_INBOUND, _OUTBOUND = 1, 2
_NANOSECONDS = bytes([9])
_MAC_BYTES = 6
_FILTER_IS_TEXT = b"\0"
_MOST_TEXT = 0xFFF0  # an option's length has 16 bits

# LINKTYPE_… (https://www.tcpdump.org/linktypes.html) of ARPHRD_… (linux/if_arp.h).
_ETHERNET, _RAW, _NOT_DECODED = 1, 101, 147
_LINK_TYPES = {
    1: _ETHERNET,
    772: _ETHERNET,  # loopback
    65534: _RAW,  # TUN, WireGuard
    519: _RAW,  # rawip
    768: _RAW,  # ipip
    769: _RAW,  # ip6tnl
    776: _RAW,  # sit
}


class PcapngWriter:
    """Makes the blocks of one section, each as bytes to be written in the order of the calls.

    Begin with `section`. Text is cut at 64 KiB, which is what the format has room for.
    """

    def __init__(self) -> None:
        self._interfaces = 0

    def section(
        self, *, hardware: str = "", os: str = "", application: str = "", comment: str = ""
    ) -> bytes:
        """What was captured on and with."""
        body = struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _UNKNOWN_LENGTH)
        options = (
            _texts(_SECTION_HARDWARE, hardware),
            _texts(_SECTION_OS, os),
            _texts(_SECTION_APPLICATION, application),
            _texts(_COMMENT, comment),
        )
        return _block(_SECTION, body, options)

    def names(self, names: Mapping[IPText, Sequence[str]]) -> bytes:
        """What addresses are called, from here on."""
        records = []
        for address, called in names.items():
            packed = ip_address(address).packed
            kind = _NAME_IPV4 if len(packed) == 4 else _NAME_IPV6
            text = b"".join(_text(name) + b"\0" for name in called)
            records.append(_field(kind, packed + text))
        return _block(_NAMES, b"".join(records) + _field(_END, b""), ())

    def interface(
        self,
        name: str,
        link_type: int,
        *,
        description: str = "",
        snaplen: int = 0,
        filter_text: str = "",
        mac: str = "",
        comment: str = "",
    ) -> tuple[int, bytes]:
        """(number, block) of one more interface. `link_type` is the ARPHRD_ number, `snaplen` in
        bytes, 0 where packets are whole."""
        number = self._interfaces
        self._interfaces += 1
        hardware = bytes.fromhex(mac.replace(":", ""))
        body = struct.pack("<HHI", _LINK_TYPES.get(link_type, _NOT_DECODED), 0, snaplen)
        options = (
            _texts(_IF_NAME, name),
            _texts(_IF_DESCRIPTION, description),
            # Some devices have addresses of another length (a tunnel's are IP addresses).
            _field(_IF_MAC, hardware) if len(hardware) == _MAC_BYTES else b"",
            _field(_IF_TSRESOL, _NANOSECONDS),
            _field(_IF_FILTER, _FILTER_IS_TEXT + _text(filter_text)) if filter_text else b"",
            _texts(_COMMENT, comment),
        )
        return number, _block(_INTERFACE, body, options)

    def packet(
        self,
        interface: int,
        time_ns: int,
        data: bytes,
        length: int,
        *,
        outgoing: bool | None = None,
        comments: Iterable[str] = (),
        lost: int = 0,
    ) -> bytes:
        """One packet: `length` bytes on the wire, of which there are `data`.

        `lost` packets of this interface got no room between the one before and this one.
        """
        self._check(interface)
        head = struct.pack("<IIIII", interface, *_time(time_ns), len(data), length)
        options = []
        if outgoing is not None:
            flags = struct.pack("<I", _OUTBOUND if outgoing else _INBOUND)
            options.append(_field(_PACKET_FLAGS, flags))
        if lost:
            options.append(_field(_PACKET_DROPS, struct.pack("<Q", lost)))
        options += [_texts(_COMMENT, comment) for comment in comments]
        return _block(_PACKET, head + data + _padding(data), options)

    def statistics(self, interface: int, time_ns: int, *, received: int, lost: int) -> bytes:
        """How many packets an interface had for us, at the end, and how many got no room."""
        self._check(interface)
        when = struct.pack("<II", *_time(time_ns))
        options = (
            _field(_STATISTICS_END, when),
            _field(_STATISTICS_RECEIVED, struct.pack("<Q", received)),
            _field(_STATISTICS_DROPS, struct.pack("<Q", lost)),
        )
        return _block(_STATISTICS, struct.pack("<I", interface) + when, options)

    def _check(self, interface: int) -> None:
        if not 0 <= interface < self._interfaces:
            raise ValueError(f"no interface {interface}; {self._interfaces} are described")


def _time(time_ns: int) -> tuple[int, int]:
    """High and low word, in the resolution that each interface says."""
    return time_ns >> 32, time_ns & 0xFFFFFFFF


def _block(kind: int, body: bytes, options: Iterable[bytes]) -> bytes:
    given = b"".join(options)
    if given:
        given += _field(_END, b"")
    size = 12 + len(body) + len(given)
    return struct.pack("<II", kind, size) + body + given + struct.pack("<I", size)


def _field(kind: int, value: bytes) -> bytes:
    """An option, or a record of names: type, length, value, padded to 32 bits."""
    return struct.pack("<HH", kind, len(value)) + value + _padding(value)


def _texts(kind: int, text: str) -> bytes:
    """An option of text, none where there is no text."""
    return _field(kind, _text(text)) if text else b""


def _text(text: str) -> bytes:
    """UTF-8 without NUL, which ends names, and not longer than fits."""
    encoded = text.replace("\0", "").encode(errors="replace")
    return encoded[:_MOST_TEXT].decode(errors="ignore").encode()


def _padding(value: bytes) -> bytes:
    return b"\0" * (-len(value) & 3)
