"""What the agent and the process of the UDP tunnel say to each other.

Values only, frozen, without I/O. Requests and answers travel as MessagePack, each with its length
in front (`podwire.tunnel.control`), so addresses are in canonical text. What is wrong in a request
is found where it enters the tunnel, and answered with `Failed`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

#: An IP address in canonical text, as `str(ip_address(…))` gives it.
IPText = str
#: An IP network in canonical text, `10.244.2.0/24`.
NetworkText = str

#: Flannel's port for its udp backend.
TUNNEL_PORT = 8285
#: What the tunnel adds to a packet: an IP header (20 bytes, or 40 on an IPv6 underlay) and UDP's.
OVERHEAD_V4 = 28
OVERHEAD_V6 = 48
#: What encryption adds on top: a header of 16 bytes and a tag of 16, and up to 15 of padding.
OVERHEAD_ENCRYPTED = 32
#: The largest payload of one UDP datagram over IPv4, and so of a batch of them that the kernel
#: takes at once (udp(7), UDP_SEGMENT).
BATCH_BYTES = 65507

#: Why a packet or datagram was dropped: the counter's name, and what it means.
DROPS: Mapping[str, str] = {
    # From pods, on their way to a peer.
    "tun_malformed": "what the kernel handed over is no whole IP packet",
    "no_lease": "no peer has a lease for the destination; answered with ICMP unreachable",
    "ttl_expired": "its TTL or hop limit was used up here; answered with ICMP time exceeded",
    "too_big": "larger than the path to the peer takes, and must not be fragmented; answered",
    "multicast": "for a group or for all, of which no lease can be",
    "send_overrun": "the underlay's send buffer was full",
    "send_failed": "the underlay refused it (no route to the peer, link down, a packet filter)",
    "no_public_key": "encryption is required, and the peer has published no key",
    # From the underlay, on their way to a pod.
    "not_a_peer": "the datagram came from an address that holds no lease",
    "malformed": "the datagram holds no whole IP packet",
    "foreign_source": "the packet's source address is outside of the sending peer's lease",
    "foreign_destination": "the packet's destination is outside of this node's own subnets",
    "ttl_expired_inbound": "its TTL or hop limit was used up by this end of the tunnel",
    "not_encrypted": "a bare packet from a peer that has to encrypt",
    "tun_refused": "the kernel refused the packet at the TUN device",
}
#: The same of what encryption drops.
ENCRYPTION_DROPS: Mapping[str, str] = {
    "no_key": "the peer is not known, or has no public key",
    "waiting_full": "packets that waited for a session until newer ones needed their place",
    "unreachable": "packets that waited until the handshake was given up, or the peer removed",
    "malformed": "the datagram is none of this protocol's",
    "not_encrypted": "the datagram is a bare IP packet",
    "no_session": "the datagram is of a session that this end does not have with its sender",
    "not_authentic": "the datagram fails authentication",
    "replayed": "the datagram was received before, or is too old to know",
    "handshake_forged": "a handshake message whose sender does not have the peer's key",
    "handshake_stale": "a first message that was received before, or answers nothing asked",
    "handshake_limited": "more handshake messages than this end answers",
}


class TunnelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What one end of the tunnel is.

    `dev` is a persistent TUN device that exists; `port` is UDP, at both ends; `local` are the
    underlay addresses to bind to, one of each family at most. `subnets` is this node's lease: what
    comes for anything else is dropped. With `private_key` (X25519, 32 bytes) peers that have a
    public key are spoken to encrypted; with `require_encryption` all others are refused.
    """

    dev: str
    local: tuple[IPText, ...]
    subnets: tuple[NetworkText, ...]
    port: int = TUNNEL_PORT
    private_key: bytes | None = None
    require_encryption: bool = False


class TunnelPeer(msgspec.Struct, frozen=True, kw_only=True):
    """The other end: a node's name, its lease, and the underlay address that it is reached at.

    `public_key` is X25519, 32 bytes; None for a peer that does not encrypt (Flannel).
    """

    name: str
    subnets: tuple[NetworkText, ...]
    address: IPText
    port: int = TUNNEL_PORT
    public_key: bytes | None = None


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """Be this end; answered with `Ready`. The same configuration again changes nothing.

    `peers` are all of them, at once, so that no packet meets a table without its peer. What is
    wrong with one of them is no matter to the others.
    """

    config: TunnelConfig
    peers: tuple[TunnelPeer, ...] = ()


class SetPeer(msgspec.Struct, frozen=True, tag="set-peer"):
    """A peer is new or changed, told by its name. Answered with `Done`."""

    peer: TunnelPeer


class RemovePeer(msgspec.Struct, frozen=True, tag="remove-peer"):
    """A peer is gone. Answered with `Done`, also where it was not known."""

    name: str


class GetStats(msgspec.Struct, frozen=True, tag="get-stats"):
    """Answered with `Stats`."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Answered with `Done`; then the process ends. The device stays."""


Request = Configure | SetPeer | RemovePeer | GetStats | Stop


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The tunnel forwards. `features` names the kernel's offloads in use, for people:

    `tso4`, `tso6`, `uso4`, `uso6` (super-packets through the TUN device), `gso` and `gro` (through
    the UDP socket). None of them changes what is forwarded. `refused` says of the peers that cannot
    be what is wrong with them, by name; all others are peers now.
    """

    features: tuple[str, ...]
    pid: int
    refused: dict[str, str] = {}


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The request was carried out."""


class PeerStats(msgspec.Struct, frozen=True, kw_only=True):
    """What passed between this end and a peer: IP packets and their bytes, without overhead.

    `heard_s` is the age of the last datagram accepted from it, None for never; `handshake_s` that
    of the encrypted session, None without one. `path_mtu` is the largest IP packet that the path
    to it is known to take, inside of the tunnel; None where nothing was sent, or there is no path.
    """

    name: str
    sent_packets: int
    sent_bytes: int
    received_packets: int
    received_bytes: int
    heard_s: float | None
    handshake_s: float | None
    path_mtu: int | None


class Stats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    """Packets dropped, by the names in `DROPS` (all of them), and what passed, by peer.

    `encryption` has the counters of `podwire.tunnel.secure`, by its names; empty without a key.
    """

    drops: dict[str, int]
    encryption: dict[str, int]
    peers: tuple[PeerStats, ...]

    @property
    def dropped(self) -> dict[str, int]:
        """All that was dropped: by `DROPS` and, with a key, by `ENCRYPTION_DROPS`, which have some
        names in common."""
        lost = {name: count for name, count in self.encryption.items() if name in ENCRYPTION_DROPS}
        return self.drops | {name: self.drops.get(name, 0) + count for name, count in lost.items()}


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The request was refused; what was so before still is."""

    text: str
    remedy: str | None = None


Answer = Ready | Done | Stats | Failed
