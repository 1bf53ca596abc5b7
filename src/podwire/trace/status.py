"""A node's state for a person: its fabric, its lease, the ways to its peers, what was dropped.

Values only; `podwire status` shows them, agents fill them in.
"""

from __future__ import annotations

import msgspec


class PathStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The way to a peer's pods of one IP version.

    `kind` is `direct`, `vxlan`, `l2-vxlan` or `udp`, over the peer's address `via`, for `reason`.
    `since` is when the agent began to use it, in seconds of the epoch. `rtt_us` is of the probes,
    None where there are none. `blocked`: VXLAN is seen not to get through.
    """

    version: int
    kind: str
    via: str
    reason: str
    since: float
    rtt_us: float | None = None
    blocked: bool = False


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Another node. `objections` are why its lease is not used, one sentence each.

    Of the UDP tunnel, None where it is not used: `encrypted`, and the seconds since the last
    handshake and since anything was heard from it.
    """

    node: str
    subnets: tuple[str, ...]
    paths: tuple[PathStatus, ...]
    objections: tuple[str, ...] = ()
    encrypted: bool | None = None
    handshake_s: float | None = None
    heard_s: float | None = None


class TunnelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The process of the UDP tunnel: its `pid`, since when the agent has it forward, in seconds of
    the epoch, how often it has had to be started anew since the agent began and how the last one
    was `lost`, in words, and the kernel's offloads that it uses."""

    pid: int
    since: float
    restarts: int
    features: tuple[str, ...]
    lost: str = ""


class DropCount(msgspec.Struct, frozen=True, kw_only=True):
    """Packets dropped for one reason, whose `meaning` is in words."""

    reason: str
    meaning: str
    packets: int


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One node. `problems` are what isn't well, one sentence each; none when all is.

    `store` is where its lease is; `subnets` are what it leases, `mtu` is its pods'.
    `anti_spoofing` is what does it, `ebpf` or `nftables`, empty where nothing does. `tunnel` is
    None where there is none, or none that forwards. What depends on the lease is empty while there
    is none.
    """

    node: str
    store: str
    connected: bool
    held: bool
    profile: str = ""
    ipam: str = ""
    wiring: str = ""
    transport: str = ""
    anti_spoofing: str = ""
    options: tuple[str, ...] = ()
    network: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    pods: int = 0
    underlay: str = ""
    underlay_ips: tuple[str, ...] = ()
    underlay_mtu: int = 0
    mtu: int = 0
    tunnel: TunnelStatus | None = None
    peers: tuple[PeerStatus, ...] = ()
    drops: tuple[DropCount, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def well(self) -> bool:
        return not self.problems
