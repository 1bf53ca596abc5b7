"""What the kernel says has changed in a network namespace.

Left out is what changes by itself: neighbours that are resolved, IPv6 link-local addresses.
"""

from __future__ import annotations

import os
from pathlib import Path

from podwire.kernel import messages, netns, nft
from podwire.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket

_GROUPS = (
    messages.RTNLGRP_LINK,
    messages.RTNLGRP_NEIGH,
    messages.RTNLGRP_IPV4_IFADDR,
    messages.RTNLGRP_IPV4_ROUTE,
    messages.RTNLGRP_IPV4_NETCONF,
)
_NEIGHBORS = (messages.RTM_NEWNEIGH, messages.RTM_DELNEIGH)


class Notifications:
    """Listens to rtnetlink and nftables in a namespace while the block lasts."""

    def __init__(self, namespace: Path) -> None:
        self._namespace = namespace

    def __enter__(self) -> Notifications:
        fd = netns.open_netns(self._namespace)
        try:
            with netns.entered(fd):
                self._sockets = (
                    NetlinkSocket(groups=_GROUPS),
                    NetlinkSocket(NETLINK_NETFILTER, groups=(nft.NFNLGRP_NFTABLES,)),
                )
        finally:
            os.close(fd)
        return self

    def __exit__(self, *error: object) -> None:
        for each in self._sockets:
            each.close()

    def changes(self) -> list[str]:
        """One entry for each change since the last call."""
        route, tables = self._sockets
        found = []
        for one in route.notifications():
            if one.type in _NEIGHBORS:
                _, _, state, _, _ = messages.parse_neighbor(one.payload)
                if not state & messages.NUD_PERMANENT:
                    continue
            found.append(f"rtnetlink {one.type}: {one.payload.hex()}")
        found += [f"nftables {one.type}: {one.payload.hex()}" for one in tables.notifications()]
        return found
