"""TUN devices in real namespaces."""

from __future__ import annotations

import errno
import os

import pytest

from podwire.errors import KernelError
from podwire.kernel import link_messages, messages
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.tun import VNET_HEADER, attach_tun, create_tun
from podwire.model.state import LINK_GROUP
from tests.conftest import Namespace

pytestmark = pytest.mark.root


def test_a_device_is_persistent_and_ours(inside: Namespace) -> None:
    with NetlinkSocket() as sock:
        create_tun(sock, "flannel0", mtu=1472)
        found = sock.get(messages.RTM_GETLINK, link_messages.get_link("flannel0"))
    assert found is not None
    link = link_messages.parse_link(found)
    assert (link.kind, link.group, link.mtu, link.up) == ("tun", LINK_GROUP, 1472, False)


def test_a_name_that_is_taken_is_refused(inside: Namespace) -> None:
    with NetlinkSocket() as sock:
        create_tun(sock, "flannel0")
        with pytest.raises(KernelError, match="flannel0") as refused:
            create_tun(sock, "flannel0")
        assert refused.value.errno == errno.EBUSY


def test_nothing_is_left_where_the_group_can_not_be_set(inside: Namespace) -> None:
    with NetlinkSocket() as sock, pytest.raises(KernelError):
        create_tun(sock, "flannel0", mtu=1 << 30)
    assert "flannel0" not in inside.run("ip -o link")


def test_attaching_takes_what_the_kernel_offers(inside: Namespace) -> None:
    with NetlinkSocket() as sock:
        create_tun(sock, "flannel0")
    with attach_tun("flannel0") as tun:
        assert {"csum", "tso4", "tso6"} <= set(tun.features)
        with pytest.raises(KernelError) as refused:
            attach_tun("flannel0")
        assert refused.value.errno == errno.EBUSY
    with attach_tun("flannel0", offloads=False) as tun:
        assert tun.features == ()
        inside.run("ip link set flannel0 up")
        inside.run("ip addr add 10.0.0.1/24 dev flannel0; ping -c 1 -W 0.001 10.0.0.2 || true")
        packets: list[bytes] = []
        while not any(packet[VNET_HEADER] >> 4 == 4 for packet in packets):
            packets.append(os.read(tun.fd, 2000))


def test_attaching_never_makes_a_device(inside: Namespace) -> None:
    with pytest.raises(KernelError) as refused:
        attach_tun("flannel0")
    assert refused.value.errno == errno.ENODEV
    assert "flannel0" not in inside.run("ip -o link")


def test_attaching_to_another_kind_of_link_is_refused(inside: Namespace) -> None:
    inside.run("ip link add flannel0 type bridge")
    with pytest.raises(KernelError) as refused:
        attach_tun("flannel0")
    assert refused.value.errno == errno.EINVAL
