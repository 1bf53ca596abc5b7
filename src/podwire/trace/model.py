"""A `Trace`: what a probe's packets went through, hop by hop, and what became of them.

Values only, frozen, without I/O: what each face (text, JSON, SVG, pcapng) renders, and the
documented schema of `podwire trace -o json`, so that names and meanings here are a public
interface. Times are kernel timestamps of the namespace's own machine.

    Trace ── Round (one probe) ── Path (request, reply) ── Hop (one sighting) ── Packet, Decision
"""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from podwire.model.probe import IPText, Probe
from podwire.model.state import Why

SCHEMA = "podwire.io/trace/v1"

# --- the packet -------------------------------------------------------------------------------


class Ethernet(msgspec.Struct, frozen=True, tag="ethernet", tag_field="layer"):
    """IEEE 802.3; `type` is the EtherType, MACs are text (`0a:58:0a:f4:01:02`)."""

    source: str
    target: str
    type: int


class Arp(msgspec.Struct, frozen=True, tag="arp", tag_field="layer"):
    """RFC 826. `operation` 1 asks who has `target_ip`, 2 answers that `source_mac` is."""

    operation: int
    source_mac: str
    source_ip: IPText
    target_mac: str
    target_ip: IPText


class Ip(msgspec.Struct, frozen=True, tag="ip", tag_field="layer"):
    """RFC 791 and RFC 8200. `ttl` is the hop limit of IPv6, `protocol` the upper layer's number.

    `length` is the whole packet's, headers included. `offset` of a fragment is in bytes. IPv6 has
    an `id` in fragments only, and is never fragmented on the way, so `dont_fragment` is True.
    """

    version: Literal[4, 6]
    source: IPText
    target: IPText
    ttl: int
    protocol: int
    length: int
    id: int = 0
    dont_fragment: bool = False
    more_fragments: bool = False
    offset: int = 0
    tos: int = 0


class Udp(msgspec.Struct, frozen=True, tag="udp", tag_field="layer"):
    source_port: int
    target_port: int
    length: int


class Tcp(msgspec.Struct, frozen=True, tag="tcp", tag_field="layer"):
    """`flags` in tcpdump's letters and order: `S`, `S.`, `R.`, `P.`, `F.`; empty in a quoted
    packet that ends before them."""

    source_port: int
    target_port: int
    sequence: int
    acknowledgement: int
    flags: str


class Icmp(msgspec.Struct, frozen=True, tag="icmp", tag_field="layer"):
    """RFC 792 or RFC 4443, by the IP version before it; also NDP.

    `id` and `sequence` of an echo, `mtu` of "fragmentation needed" and "packet too big",
    `target` of an NDP solicitation or advertisement. `quoted` are the headers of the packet that
    an error is about.
    """

    type: int
    code: int
    id: int | None = None
    sequence: int | None = None
    mtu: int | None = None
    target: IPText | None = None
    quoted: tuple[Header, ...] = ()


class Vxlan(msgspec.Struct, frozen=True, tag="vxlan", tag_field="layer"):
    """RFC 7348. What follows is the inner frame."""

    vni: int


class Tunnel(msgspec.Struct, frozen=True, tag="tunnel", tag_field="layer"):
    """The user-space tunnel's datagram (Flannel's udp), which has no header of its own: what
    follows is the inner IP packet."""


class Payload(msgspec.Struct, frozen=True, tag="payload", tag_field="layer"):
    """What is not decoded further: `length` bytes; `data` the first of them (hex, at most 32)."""

    length: int
    data: str = ""


Header = Ethernet | Arp | Ip | Udp | Tcp | Icmp | Vxlan | Tunnel | Payload


class Packet(msgspec.Struct, frozen=True):
    """A packet as it was on one interface: `size` in bytes on the wire there, headers outermost
    first. A device without link headers (TUN) has none."""

    size: int
    headers: tuple[Header, ...]

    @property
    def inner(self) -> tuple[Header, ...]:
        """The headers after the last encapsulation; all where there is none."""
        for index in range(len(self.headers) - 1, -1, -1):
            if isinstance(self.headers[index], Vxlan | Tunnel):
                return self.headers[index + 1 :]
        return self.headers

    @property
    def encapsulated(self) -> bool:
        return any(isinstance(header, Vxlan | Tunnel) for header in self.headers)


# --- the path ---------------------------------------------------------------------------------


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """An interface of a place. `kind` is the kernel's (`veth`, `bridge`, `vxlan`, `loopback`,
    `tun`, `device` for a physical one or what is not known).

    `index` is the kernel's, in the namespace; `master` the index of its bridge; `peer` the index
    of a veth's other end, in the namespace of `peer_place` where that is a place observed too.
    `mtu` in bytes, `port` UDP.
    """

    index: int
    name: str
    kind: str
    mac: str = ""
    mtu: int = 0
    up: bool = True
    master: int = 0
    peer: int = 0
    peer_place: int | None = None
    addresses: tuple[str, ...] = ()
    vni: int | None = None
    port: int | None = None
    underlay: bool = False


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A network namespace: a node's own (`pod` is empty) or a pod's (`default/pod1`).

    `clock` is equal for places whose times may be compared: the machine's boot id.
    """

    node: str
    pod: str = ""
    clock: str = ""
    interfaces: tuple[Interface, ...] = ()

    @property
    def name(self) -> str:
        """`node1`, or `pod:default/pod1`: how captures and texts call it."""
        return f"pod:{self.pod}" if self.pod else self.node


class Change(msgspec.Struct, frozen=True):
    """What became of the packet since the hop before. `kind` is one of `encapsulated`,
    `decapsulated`, `ttl`, `mac`, `source-nat`, `target-nat`, `fragmented`, `size`, `df`, `router`
    (it went through one, where nobody looks) and `unseen` (it was encrypted meanwhile, so that
    nobody could tell it from others); `text` a few words (`TTL 64 → 63`)."""

    kind: str
    text: str


class Cause(enum.StrEnum):
    """Why a packet did not arrive or was not answered; the key of docs/guide/troubleshooting."""

    NO_ROUTE = "no-route"
    NO_LEASE = "no-lease"  # the node whose subnet it is has published none: agent never started
    BLACKHOLE = "blackhole"  # a route says so: unreachable, prohibit, blackhole
    WRONG_ROUTE = "wrong-route"
    NO_FDB = "no-fdb"
    WRONG_FDB = "wrong-fdb"
    NO_NEIGHBOR = "no-neighbor"  # the permanent entry is not there, or nobody answers for a gateway
    WRONG_NEIGHBOR = "wrong-neighbor"
    NOT_FORWARDING = "not-forwarding"  # ip_forward=0
    NFT = "nft"
    NETFILTER = "netfilter"  # dropped by netfilter, the rule can't be named (xtables)
    RP_FILTER = "rp-filter"
    TOO_BIG = "too-big"  # over an MTU, and DF is set
    LINK_DOWN = "link-down"
    LINK_MISSING = "link-missing"
    UNDERLAY = "underlay"  # left one node, never reached the other
    TUNNEL = "tunnel"  # the user-space tunnel's process is not there, or dropped it
    SPOOFED = "spoofed"  # its source is not the pod's own
    NOT_IN_USE = "not-in-use"  # nobody has that address: ARP or NDP unanswered
    REFUSED = "refused"  # delivered; nothing listens
    TTL = "ttl"
    NO_ANSWER = "no-answer"  # delivered; nothing came back, as far as can be seen
    AGENT_AWAY = "agent-away"  # cannot be seen further: the next node's agent does not answer
    SOCKET = "socket"  # the sender's own stack refused to send
    UNKNOWN = "unknown"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that stops packets, found by asking the kernel: the cause, in words, the remedy
    (an imperative, best the very command), and the object that wanted it otherwise.

    `place` is the name of the place that it is in (`Place.name`) and `interface` the one there
    that it is about (`flannel.1`, where the entry belongs or the device is); each is empty where
    it is the hop's own.
    """

    cause: Cause
    text: str
    place: str = ""
    interface: str = ""
    remedy: str = ""
    why: Why | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the kernel consulted to send the packet on from a hop.

    `kind` is one of `route`, `neigh`, `fdb` (of a VXLAN device), `bridge` (a port, or the bridge
    itself), `tunnel` (encapsulated or decapsulated by that device, or an entry of the user-space
    tunnel's table), `path` (which transport leads to that peer, and why), `nft`, `tc` (the guard of
    a pod's port), `local` (delivered to this namespace), `pair` (the other end of a veth). `text`
    is the entry in iproute2's or nft's words, `command` what a person types to see the same, `why`
    the planner's reason for the entry, None for what Podwire did not make. `problem` is set where
    it stops the packet. `router` is the address of one that the packet leaves its node to.
    """

    kind: str
    text: str
    command: str = ""
    why: Why | None = None
    problem: Problem | None = None
    router: IPText = ""


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """The packet seen once: at an interface of a place, on the way `in` or `out` of it.

    `place` is an index into `Trace.places`. `time_ns` is in the place's clock (since the epoch);
    `since_us` is the time since the hop before, None for the first and where the clocks of the
    two can't be compared. `decisions` sent it on to the next hop.
    """

    number: int
    place: int
    interface: str
    interface_kind: str
    direction: Literal["in", "out"]
    time_ns: int
    since_us: float | None
    packet: Packet
    changes: tuple[Change, ...] = ()
    decisions: tuple[Decision, ...] = ()


class Path(msgspec.Struct, frozen=True):
    """One way of one packet. `arrived`: seen where it was to go."""

    hops: tuple[Hop, ...]
    arrived: bool


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Why it ended where it did.

    `where` names node, namespace and interface (`node1, flannel.1`), `text` is one sentence,
    `remedy` an imperative, `kernel_reason` the kernel's own word (`IP_RPFILTER`) and None where
    it gave none, `evidence` the observations that this rests on, one a line.
    """

    cause: Cause
    where: str
    text: str
    remedy: str = ""
    kernel_reason: str | None = None
    evidence: tuple[str, ...] = ()
    why: Why | None = None


class Outcome(enum.StrEnum):
    """`replied`: the answer is back. `refused`: it arrived, and the target said no (RST, port
    unreachable). `delivered`: it arrived, no answer came. `dropped`: on the way there or back.
    `unanswered`: it went on to where nobody looks (out of the cluster, to a node whose agent is
    away), and no answer came."""

    REPLIED = "replied"
    REFUSED = "refused"
    DELIVERED = "delivered"
    DROPPED = "dropped"
    UNANSWERED = "unanswered"


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One probe and its answer. `rtt_us` is from the request's first sighting to the reply's
    last, both at the source. `finding` is None for `replied`."""

    number: int
    request: Path
    reply: Path | None
    rtt_us: float | None
    outcome: Outcome
    finding: Finding | None = None


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An end of the trace. `kind` is `pod`, `node` or `address`; `name` is `default/pod1`,
    `node1` or empty; `node` is empty for what is outside of the cluster."""

    kind: Literal["pod", "node", "address"]
    ip: IPText
    name: str = ""
    node: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.ip})" if self.name else str(self.ip)


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. `verdict` is the whole in one line; `notes` say what could not be seen or
    compared, one sentence each; `started` is RFC 3339 in UTC."""

    schema: str = SCHEMA
    started: str
    source: Endpoint
    target: Endpoint
    probe: Probe
    places: tuple[Place, ...]
    rounds: tuple[Round, ...]
    verdict: str
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every probe was answered."""
        return all(one.outcome is Outcome.REPLIED for one in self.rounds)
