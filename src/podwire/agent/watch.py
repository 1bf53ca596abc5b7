"""Kernel notifications as asyncio events: rtnetlink and nftables.

The sockets belong to the network namespace of the thread that makes a `KernelWatch`, which is the
agent's main one; what arrived is handed over as is, and judged by the reconciler in its thread.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

from podwire.kernel import link_messages, messages, nft
from podwire.kernel.judge import ROUTE_GROUPS
from podwire.kernel.netlink import NETLINK_NETFILTER, Message, NetlinkSocket

#: Seconds from a notification to its being read, with all that came meanwhile.
_GATHER_S = 0.01


class KernelWatch:
    """Calls `on_rtnetlink(messages)`, `on_nft(messages)` and, when some were lost, `on_loss`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_rtnetlink: Callable[[list[Message]], None],
        on_nft: Callable[[list[Message]], None],
        on_loss: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._on_loss = on_loss
        # A fresh 10,000-node cluster makes 30,000 notifications of our own in a second.
        self._route = NetlinkSocket(groups=ROUTE_GROUPS, receive_buffer=32 * 1024 * 1024)
        self._nft = NetlinkSocket(
            NETLINK_NETFILTER, groups=(nft.NFNLGRP_NFTABLES,), receive_buffer=32 * 1024 * 1024
        )
        self._timers: dict[NetlinkSocket, asyncio.TimerHandle] = {}
        self._listen(self._route, on_rtnetlink)
        self._listen(self._nft, on_nft)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for sock in (self._route, self._nft):
            self._loop.remove_reader(sock.fileno())
            sock.close()

    def _listen(self, sock: NetlinkSocket, deliver: Callable[[list[Message]], None]) -> None:
        self._loop.add_reader(sock.fileno(), self._gather, sock, deliver)

    def _gather(self, sock: NetlinkSocket, deliver: Callable[[list[Message]], None]) -> None:
        """Wait until what belongs together has come: most is the echo of a pod being wired.

        Judging each message as it comes would take the interpreter from the thread that is just
        wiring that pod.
        """
        self._loop.remove_reader(sock.fileno())
        self._timers[sock] = self._loop.call_later(_GATHER_S, self._take, sock, deliver)

    def _take(self, sock: NetlinkSocket, deliver: Callable[[list[Message]], None]) -> None:
        self._listen(sock, deliver)
        self._read(sock, deliver)

    def _read(self, sock: NetlinkSocket, deliver: Callable[[list[Message]], None]) -> None:
        try:
            found = sock.notifications()
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._on_loss()
            return
        if found:
            deliver(found)


def may_concern_underlay(notified: Message, dev: str | None) -> bool:
    """Whether an rtnetlink notification may be about the underlay link `dev`, or, where there is
    none yet, about what might become it."""
    match notified.type:
        case messages.RTM_NEWADDR | messages.RTM_DELADDR:
            # Links of pods have link-local ones, which are no concern.
            return messages.parse_address(notified.payload)[1] == messages.RT_SCOPE_UNIVERSE
        case messages.RTM_NEWLINK | messages.RTM_DELLINK:
            return dev is None or link_messages.parse_link(notified.payload).name == dev
        case messages.RTM_NEWROUTE:
            # A default route may be what tells the link; struct rtmsg has the prefix length second.
            return dev is None or notified.payload[1] == 0
    return False
