"""What a network device can do, and by which driver: ethtool's questions, of which none changes.

Asked by ioctl of the network namespace that the calling thread is in. Layouts and numbers are those
of include/uapi/linux/ethtool.h; names of features are ethtool(8)'s (`tx-checksum-ip-generic`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct

from podwire.errors import KernelError

_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO, _ETHTOOL_GSTRINGS = 0x03, 0x1B
_ETHTOOL_GSSET_INFO, _ETHTOOL_GFEATURES = 0x37, 0x3A
_ETH_SS_FEATURES = 4
_DRVINFO_SIZE = 196
_STRING_SIZE = 32  # ETH_GSTRING_LEN
_BLOCK = struct.Struct("=IIII")  # available, requested, active, never changed


def driver(device: str) -> str:
    """The driver's name (`veth`, `vmxnet3`); empty for a device that tells none.

    Raises KernelError, with ENODEV where there is no such device.
    """
    buffer = ctypes.create_string_buffer(_DRVINFO_SIZE)
    struct.pack_into("=I", buffer, 0, _ETHTOOL_GDRVINFO)
    try:
        _ask(device, buffer)
    except KernelError as error:
        if error.errno == errno.EOPNOTSUPP:
            return ""
        raise
    return buffer.raw[4:36].partition(b"\0")[0].decode(errors="replace")


def active_features(device: str) -> frozenset[str]:
    """The names of the features that are switched on.

    Raises KernelError, with ENODEV where there is no such device.
    """
    names = _feature_names(device)
    words = (len(names) + 31) // 32
    buffer = ctypes.create_string_buffer(8 + words * _BLOCK.size)
    struct.pack_into("=II", buffer, 0, _ETHTOOL_GFEATURES, words)
    _ask(device, buffer)
    active = [_BLOCK.unpack_from(buffer, 8 + word * _BLOCK.size)[2] for word in range(words)]
    return frozenset(
        name for bit, name in enumerate(names) if name and active[bit // 32] >> (bit % 32) & 1
    )


def _feature_names(device: str) -> list[str]:
    """By their bits; a bit without a name is empty."""
    buffer = ctypes.create_string_buffer(20)
    struct.pack_into("=IIQ", buffer, 0, _ETHTOOL_GSSET_INFO, 0, 1 << _ETH_SS_FEATURES)
    _ask(device, buffer)
    (count,) = struct.unpack_from("=I", buffer, 16)
    buffer = ctypes.create_string_buffer(12 + count * _STRING_SIZE)
    struct.pack_into("=III", buffer, 0, _ETHTOOL_GSTRINGS, _ETH_SS_FEATURES, count)
    _ask(device, buffer)
    strings = buffer.raw[12:]
    return [
        strings[at : at + _STRING_SIZE].partition(b"\0")[0].decode(errors="replace")
        for at in range(0, count * _STRING_SIZE, _STRING_SIZE)
    ]


def _ask(device: str, buffer: ctypes.Array[ctypes.c_char]) -> None:
    """Have the kernel fill in `buffer`, which begins with the command; netdevice(7) has ifreq."""
    request = struct.pack("16sP16x", device.encode()[:15], ctypes.addressof(buffer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, request)
        except OSError as error:
            number = error.errno or 0
            raise KernelError(f"ethtool {device}: {os.strerror(number)}", errno=number) from error
