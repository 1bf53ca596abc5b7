"""The UDP tunnel of a node as its agent knows it: its table, its state, what it dropped.

Values only. What lives here: looking up whom a packet is for or from. What does not: the process
(`podwire.tunnel`), and what follows for a packet (`podwire.trace.decisions.datagrams`).
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

import msgspec

from podwire.model.state import IPAddress, IPNetwork
from podwire.model.tunnel import TunnelConfig, TunnelPeer


class UserTunnel(msgspec.Struct, frozen=True, kw_only=True):
    """`problem` is why it does not forward, None where it does. `dropped` are packets by reason
    (`podwire.model.tunnel.DROPS`) since whoever asks began to watch."""

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
