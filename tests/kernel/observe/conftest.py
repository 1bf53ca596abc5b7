"""Devices for the taps to look at."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterator

import pytest

from podwire.kernel import netns
from tests.conftest import Namespace

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h

MakeTun = Callable[[Namespace, str], int]


@pytest.fixture
def make_tun() -> Iterator[MakeTun]:
    """Makes a TUN device in a namespace, up: what is written to its descriptor comes in there."""
    fds: list[int] = []

    def make(namespace: Namespace, name: str) -> int:
        fd = netns.open_netns(namespace.path)
        with netns.entered(fd):
            tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        os.close(fd)
        fds.append(tun)
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("=16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        namespace.run(f"ip link set {name} up")
        return tun

    yield make
    for one in fds:
        os.close(one)
