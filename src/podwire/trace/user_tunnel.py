"""The UDP tunnel of a node as its agent knows it: its table, its state, what it counted.

Values only. What lives here: looking up whom a packet is for or from, and what was counted from
one moment to another. What does not: the process (`podwire.tunnel`), and what follows for a packet
(`podwire.trace.decisions.datagrams`, `podwire.trace.beyond`).
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

import msgspec

from podwire.model.state import IPAddress, IPNetwork
from podwire.model.tunnel import DROPS, ENCRYPTION_DROPS, Stats, TunnelConfig, TunnelPeer


class TunnelCount(msgspec.Struct, frozen=True, kw_only=True):
    """What the UDP tunnel of a node counted while somebody watched.

    `problem` is why it does not forward, None where it does. `dropped` are packets by reason (see
    `meaning`), those since then; `received` those accepted, by the peer that sent them. `unmet` are
    the peers that it would encrypt for, and has no session with.
    """

    problem: str | None = None
    dropped: dict[str, int] = {}
    received: dict[str, int] = {}
    unmet: tuple[str, ...] = ()


def counted(before: Stats | None, now: Stats | None, problem: str | None = None) -> TunnelCount:
    """What was counted since `before`; None for one that did not answer."""
    if now is None:
        return TunnelCount(problem=problem or "its process does not answer")
    unmet = [one.name for one in now.peers if one.handshake_s is None] if now.encryption else []
    return TunnelCount(
        problem=problem,
        dropped=_more(before.dropped, now.dropped) if before is not None else {},
        received=_more(_received(before), _received(now)) if before is not None else {},
        unmet=tuple(unmet),
    )


def _received(stats: Stats) -> dict[str, int]:
    return {one.name: one.received_packets for one in stats.peers}


def _more(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    more = {name: count - before.get(name, 0) for name, count in now.items()}
    return {name: count for name, count in more.items() if count > 0}


def meaning(reason: str) -> str:
    """What the tunnel means by a reason to drop a packet."""
    return DROPS.get(reason) or ENCRYPTION_DROPS.get(reason) or reason


class UserTunnel(msgspec.Struct, frozen=True, kw_only=True):
    """`problem` is why it does not forward, None where it does. `dropped` are packets by reason
    (see `meaning`) since whoever asks began to watch."""

    config: TunnelConfig
    peers: tuple[TunnelPeer, ...] = ()
    problem: str | None = None
    dropped: Mapping[str, int] = {}

    @property
    def encrypts(self) -> bool:
        return self.config.private_key is not None

    def peer_for(self, ip: IPAddress) -> tuple[TunnelPeer, IPNetwork] | None:
        """The peer whose lease an address is in, and the subnet: the longest prefix."""
        found = [
            (peer, subnet)
            for peer in self.peers
            for subnet in map(ip_network, peer.subnets)
            if ip in subnet
        ]
        return max(found, key=lambda one: one[1].prefixlen, default=None)

    def peer_at(self, ip: IPAddress) -> TunnelPeer | None:
        """The peer that is reached at an address of the underlay."""
        return next((one for one in self.peers if ip_address(one.address) == ip), None)
