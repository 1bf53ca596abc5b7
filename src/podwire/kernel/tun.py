"""TUN devices: make a persistent one, attach to it, and say which offloads it may use.

What lives here: the ioctls of include/uapi/linux/if_tun.h. What does not: reading and writing
packets, which is the tunnel's business, and deleting, which any link's deletion does.

A persistent TUN device outlives the process that reads from it, with its addresses and routes.
It is made without being persistent, put in our group, and made persistent last: a crash in between
takes it away with the file descriptor, and never leaves a link whose owner is in doubt.

With IFF_VNET_HDR each packet has a `virtio_net_hdr` of `VNET_HEADER` bytes in front, in the byte
order of the machine: by it the kernel hands over (and takes) packets whose checksum is not filled
in, and TCP and UDP super-packets of up to 64 KiB that are yet to be cut up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from types import TracebackType

from podwire.errors import KernelError
from podwire.kernel.link_messages import IFLA_GROUP, IFLA_IFNAME, IFLA_MTU, IFLA_TXQLEN
from podwire.kernel.messages import RTM_SETLINK
from podwire.kernel.netlink import NetlinkSocket, attr_str, attr_u32, message
from podwire.model.state import LINK_GROUP

_DEVICE = "/dev/net/tun"
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOFFLOAD = 0x400454CA, 0x400454CB, 0x400454D0
_TUNGETIFF = 0x800454D2
_IFF_TUN, _IFF_PERSIST, _IFF_NO_PI = 0x0001, 0x0800, 0x1000
_IFF_VNET_HDR, _IFF_TUN_EXCL = 0x4000, 0x8000
_IFREQ = struct.Struct("16sH22x")
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change mask

_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 0x01, 0x02, 0x04, 0x08
_TUN_F_USO4, _TUN_F_USO6 = 0x20, 0x40
_TSO = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN

#: What is asked for, the most first, and the names of what is then in use. Kernels know USO from
#: 6.2 on, and both families or neither.
_OFFERS = (
    (_TSO | _TUN_F_USO4 | _TUN_F_USO6, ("csum", "tso4", "tso6", "uso4", "uso6")),
    (_TSO, ("csum", "tso4", "tso6")),
    (_TUN_F_CSUM, ("csum",)),
    (0, ()),
)

#: Packets that wait for the process to read them. At the kernel's own 500 a flood of small ones
#: loses some whenever another process has the processor for 3 ms.
_QUEUE = 2000

#: Bytes of struct virtio_net_hdr in front of each packet.
VNET_HEADER = 10


class Tun:
    """A TUN device that this process is attached to. `fd` doesn't block.

    `features` are the offloads in use, by their names in `podwire.model.tunnel.Ready`.
    """

    def __init__(self, fd: int, features: tuple[str, ...]) -> None:
        self.fd = fd
        self.features = features

    def __enter__(self) -> Tun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def descriptors(self) -> list[int]:
        """All that are read."""
        return [self.fd]

    def close(self) -> None:
        """Detach. A persistent device stays, without a carrier."""
        os.close(self.fd)


def create_tun(sock: NetlinkSocket, name: str, *, mtu: int | None = None) -> None:
    """Make the persistent TUN device `name`, down, in our group.

    The calling thread has to be in the network namespace that `sock` is of. Raises KernelError:
    with EBUSY where a link of that name exists.
    """
    fd = _open()
    try:
        _set_interface(fd, name, _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL)
        attrs = attr_str(IFLA_IFNAME, name) + attr_u32(IFLA_GROUP, LINK_GROUP)
        attrs += attr_u32(IFLA_TXQLEN, _QUEUE)
        if mtu is not None:
            attrs += attr_u32(IFLA_MTU, mtu)
        head = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        sock.do(message(RTM_SETLINK, 0, head + attrs), what=f"put {name} into our group")
        try:
            fcntl.ioctl(fd, _TUNSETPERSIST, 1)
        except OSError as error:
            raise _refused(f"make {name} persistent", error) from error
    finally:
        os.close(fd)


def attach_tun(name: str, *, offloads: bool = True) -> Tun:
    """Attach to the persistent TUN device `name`; without `offloads`, packet by packet.

    Raises KernelError: ENODEV where there is none, EBUSY where another process is attached,
    EINVAL where the link is of another kind.
    """
    try:
        socket.if_nametoindex(name)
    except OSError as error:
        raise KernelError(f"attach to {name}: no such device", errno=errno.ENODEV) from error
    fd = _open()
    try:
        _set_interface(fd, name, _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR)
        answer = fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size))
        if not _IFREQ.unpack(answer)[1] & _IFF_PERSIST:
            # It went away a moment ago, and has just been made anew by attaching to it.
            raise KernelError(f"attach to {name}: no such device", errno=errno.ENODEV)
        return Tun(fd, _offer(fd, _OFFERS if offloads else _OFFERS[-1:]))
    except BaseException:
        os.close(fd)
        raise


def _open() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        remedy = "load it with: modprobe tun; a container needs /dev/net/tun from the host"
        raise KernelError(
            f"open {_DEVICE}: {error.strerror}", errno=error.errno or 0, remedy=remedy
        ) from error


def _set_interface(fd: int, name: str, flags: int) -> None:
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except OSError as error:
        what = "make TUN device" if flags & _IFF_TUN_EXCL else "attach to"
        raise _refused(f"{what} {name}", error) from error


def _offer(fd: int, offers: tuple[tuple[int, tuple[str, ...]], ...]) -> tuple[str, ...]:
    """The first of `offers` that the kernel takes."""
    for flags, names in offers:
        # Without any, nothing can be refused; an older kernel says EINVAL to what it doesn't know.
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _TUNSETOFFLOAD, flags)
            return names
    return ()


def _refused(what: str, error: OSError) -> KernelError:
    return KernelError(f"{what}: {error.strerror}", errno=error.errno or 0)
