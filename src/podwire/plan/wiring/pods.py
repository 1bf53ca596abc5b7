"""What both wirings say of a pod: its plan, and who it is. Values only."""

from __future__ import annotations

import msgspec

from podwire.model.cluster import Attachment, NetworkConfig
from podwire.model.state import Address, Entry, Link, Route, Sysctl, Veth, Why
from podwire.model.tunnel import BATCH_BYTES, OVERHEAD_ENCRYPTED

#: What of a super-packet's size the kernel keeps for headers of its own (MAX_TCP_HEADER and one,
#: include/net/tcp.h), and somewhat more, so that no segment is missing.
_HEADERS_KEPT = 400
#: IPv4, TCP and its time stamps.
_HEADERS = 52


class PodPlan(msgspec.Struct, frozen=True):
    """A pod's interface: what the node holds of it, the host end of the veth pair first, and what
    the pod's own namespace holds."""

    host: tuple[Entry, ...]
    pod: tuple[Address | Route, ...]

    @property
    def port(self) -> Link:
        """The host end."""
        port = self.host[0]
        assert isinstance(port, Link)  # noqa: S101  both wirings put it first
        return port


def veth(config: NetworkConfig, attachment: Attachment) -> Veth:
    """A pod's veth pair, seen from the host's end."""
    return Veth(
        peer=attachment.ifname,
        peer_mac=attachment.mac,
        peer_gso_max_size=gso_max_size(attachment.mtu or config.mtu, encrypt=config.fabric.encrypt)
        if config.fabric.transport == "udp"
        else None,
    )


def gso_max_size(mtu: int, *, encrypt: bool) -> int:
    """The largest super-packet, in bytes, for pods of the UDP tunnel.

    The tunnel sends one in one batch, or in two, of which the second is nearly empty and takes as
    long; so pods make none that are just too large for one.
    """
    count = BATCH_BYTES // (mtu + (OVERHEAD_ENCRYPTED if encrypt else 0))
    return count * (mtu - _HEADERS) + _HEADERS_KEPT


def no_routers(dev: str, why: Why) -> Sysctl:
    """No pod becomes the node's IPv6 router by saying that it is one, whether or not anything
    guards what it sends. A link accepts that by default, also where no pod has IPv6."""
    return Sysctl(key=f"net/ipv6/conf/{dev}/accept_ra", value="0", why=why)


def owner(attachment: Attachment) -> str:
    """The pod, else the container, as people name it."""
    return attachment.pod or attachment.container_id[:12]


def has(attachment: Attachment) -> Why:
    """Why there are entries for a pod."""
    ips = ", ".join(str(ip.ip) for ip in attachment.ips)
    return Why(f"Pod/{owner(attachment)}", f"has {ips}")
