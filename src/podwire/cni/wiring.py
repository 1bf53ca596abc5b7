"""An attachment in the kernel, as the CNI service needs it: plan and kernel put together.

What lives here: the blocking calls, for worker threads; each thread has a netlink socket of its
own, in the namespace of the process. What does not: when to call them, and the database.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from podwire.kernel import attach as kernel
from podwire.kernel.attach_check import check
from podwire.kernel.guards import Guards
from podwire.kernel.link_queries import links
from podwire.kernel.netlink import NetlinkSocket
from podwire.model.cluster import Attachment, NetworkConfig
from podwire.model.state import Link, Route
from podwire.plan.wiring import plan_attachment, wiring_of


class Wiring:
    """The kernel's side of attachments. Every method may block and raise KernelError."""

    def __init__(self, guards: Guards | None = None) -> None:
        self._guards = guards
        self._per_thread = threading.local()

    @property
    def _socket(self) -> NetlinkSocket:
        if not hasattr(self._per_thread, "socket"):
            self._per_thread.socket = NetlinkSocket()
        socket: NetlinkSocket = self._per_thread.socket
        return socket

    def attach(self, config: NetworkConfig, attachment: Attachment, netns_fd: int) -> None:
        """Make the interface; nothing is left behind on an error."""
        plan = plan_attachment(config, attachment)
        kernel.attach(self._socket, plan.host, plan.pod, netns_fd, self._guards)

    def check(self, config: NetworkConfig, attachment: Attachment, netns_fd: int) -> list[str]:
        """What is wrong with the interface, one sentence a fault."""
        plan = plan_attachment(config, attachment)
        return check(self._socket, plan.host, plan.pod, netns_fd)

    def cut_off(self, attachment: Attachment) -> None:
        """Nothing passes the host's end any more. Fast, where `unregister` is not."""
        kernel.cut_off(self._socket, attachment.host_ifname)

    def unregister(self, attachments: Sequence[Attachment]) -> None:
        """Delete the interfaces, those that are still there."""
        kernel.detach(self._socket, *(attachment.host_ifname for attachment in attachments))

    def ports(self) -> set[str]:
        """The names of the pods' host ends that exist."""
        return {
            name for name, link in links(self._socket).items() if link.ours and link.kind == "veth"
        }


def described(config: NetworkConfig, attachment: Attachment) -> tuple[list[Link], list[Route]]:
    """The links that the node holds for an attachment, and the routes that the pod has."""
    plan = plan_attachment(config, attachment)
    bridges = [
        entry
        for entry in wiring_of(config.fabric).plan_node(config)
        if isinstance(entry, Link) and entry.name == plan.port.master
    ]
    return [*bridges, plan.port], [entry for entry in plan.pod if isinstance(entry, Route)]


def is_own_netns(netns_fd: int) -> bool:
    """Whether a namespace is the one that this process is in."""
    return os.path.samestat(os.fstat(netns_fd), Path("/proc/self/ns/net").stat())
