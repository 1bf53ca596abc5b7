"""The addresses that a node is known by, as they are on its links now.

What lives here: following them when somebody gives the node others. What does not: telling of them
(`node_status`).
"""

from __future__ import annotations

from ipaddress import ip_address

from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.underlay import find_underlay


class NodeAddresses:
    """`ips` are those that were found last, one a family, the one that it is known by first.

    As a kubelet's that is given none: where the node has lost an address, that of the same link
    takes its place, or of the default route's link; where there is none, the last one stays.
    """

    def __init__(self, ips: tuple[str, ...]) -> None:
        self.ips = ips
        self._dev: str | None = None

    def look(self) -> None:
        """Ask the kernel. Raises KernelError."""
        known = [ip_address(ip) for ip in self.ips]
        with NetlinkSocket() as socket:
            found = find_underlay(socket, known)
            if self._dev is not None and (isinstance(found, str) or found.dev != self._dev):
                on_same_link = find_underlay(socket, known, self._dev)
                found = found if isinstance(on_same_link, str) else on_same_link
        if isinstance(found, str):
            return
        self._dev = found.dev
        now = {ip.version: str(ip) for ip in found.ips}
        self.ips = tuple(now.get(ip.version, str(ip)) for ip in known)
