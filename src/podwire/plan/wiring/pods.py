"""What both wirings say of a pod: its plan, and who it is. Values only."""

from __future__ import annotations

import msgspec

from podwire.model.cluster import Attachment
from podwire.model.state import Address, Entry, Link, Route, Why


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


def owner(attachment: Attachment) -> str:
    """The pod, else the container, as people name it."""
    return attachment.pod or attachment.container_id[:12]


def has(attachment: Attachment) -> Why:
    """Why there are entries for a pod."""
    ips = ", ".join(str(ip.ip) for ip in attachment.ips)
    return Why(f"Pod/{owner(attachment)}", f"has {ips}")
