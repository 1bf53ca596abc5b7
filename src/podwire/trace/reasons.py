"""The kernel's drop reasons for people, and which causes they can be the trace of.

What lives here: what `SKB_DROP_REASON_…` (include/net/dropreason-core.h) says, with the function
that dropped the packet where the reason alone says too little. What does not: which drop is the
probe's, and what follows from it (`verdict`). Pure.

One reason has several causes: a packet has no route because nobody made one, or because the
interface that it was on is down. So a cause that was found by asking is believed where the reason
allows it, and the first cause here is what the reason alone says.
"""

from __future__ import annotations

from typing import NamedTuple

from podwire.trace.model import Cause


class Reason(NamedTuple):
    """`words` continue "the kernel dropped it: …". `causes` are those that it is consistent with,
    the likeliest first; none where it says nothing of the cause."""

    words: str
    causes: tuple[Cause, ...] = ()

    @property
    def likeliest(self) -> Cause:
        return self.causes[0] if self.causes else Cause.UNKNOWN


_NO_WAY = (
    Cause.NO_ROUTE,
    Cause.NO_LEASE,
    Cause.WRONG_ROUTE,
    Cause.BLACKHOLE,
    Cause.LINK_DOWN,
    Cause.LINK_MISSING,
    Cause.NOT_IN_USE,
)
_UNRESOLVED = (
    Cause.NOT_IN_USE,
    Cause.NO_NEIGHBOR,
    Cause.WRONG_NEIGHBOR,
    Cause.WRONG_FDB,
    Cause.NO_FDB,
    Cause.WRONG_ROUTE,
    Cause.NO_ROUTE,
    Cause.LINK_DOWN,
    Cause.LINK_MISSING,
    Cause.UNDERLAY,
)
_UNANSWERED = "nobody answered for the next hop's MAC"
_UNREACHABLE_PORT = (
    Cause.LINK_DOWN,
    Cause.LINK_MISSING,
    Cause.NO_FDB,
    Cause.WRONG_NEIGHBOR,
    Cause.NOT_IN_USE,
)
_FILTERED = Reason("a packet filter (netfilter)", (Cause.NETFILTER, Cause.NFT))
_TOO_BIG = Reason("it is longer than the MTU", (Cause.TOO_BIG,))

#: By reason and function, for those that the reason does not tell apart.
_AT = {
    ("NOT_SPECIFIED", "neigh_invalidate"): Reason(_UNANSWERED, _UNRESOLVED),
    ("NOT_SPECIFIED", "ip_error"): Reason(
        "a route says unreachable, prohibit or blackhole", (Cause.BLACKHOLE, *_NO_WAY)
    ),
    ("NOT_SPECIFIED", "dst_discard_out"): Reason(
        "a route says blackhole", (Cause.BLACKHOLE, *_NO_WAY)
    ),
    ("NOT_SPECIFIED", "__dev_forward_skb2"): Reason(
        "the other end of the veth is down, or its MTU is smaller",
        (Cause.LINK_DOWN, Cause.TOO_BIG, Cause.LINK_MISSING),
    ),
    ("NOT_SPECIFIED", "br_nf_dev_queue_xmit"): _TOO_BIG,
    ("NOT_SPECIFIED", "br_dev_queue_push_xmit"): _TOO_BIG,
    ("NOT_SPECIFIED", "br_handle_frame_finish"): Reason(
        "the bridge's port for its MAC takes none: down, isolated, or the one that it came by"
    ),
    ("IP_INNOROUTES", "ip6_pkt_prohibit"): Reason("a route says prohibit", (Cause.BLACKHOLE,)),
    ("IP_INHDR", "ip_forward"): Reason("its TTL has run out", (Cause.TTL, Cause.WRONG_ROUTE)),
    ("IP_INHDR", "ip6_forward"): Reason(
        "its hop limit has run out", (Cause.TTL, Cause.WRONG_ROUTE)
    ),
    ("INVALID_PROTO", "icmp_rcv"): Reason(
        "an echo request to a broadcast address", (Cause.NOT_IN_USE,)
    ),
    ("NO_TX_TARGET", "vxlan_xmit"): Reason(
        "the VXLAN device knows no tunnel end for its MAC",
        (Cause.NO_FDB, Cause.WRONG_NEIGHBOR, Cause.NO_NEIGHBOR),
    ),
    ("NO_TX_TARGET", "br_dev_xmit"): Reason(
        "the bridge has no working port for its MAC", _UNREACHABLE_PORT
    ),
    ("IP_OUTNOROUTES", "vxlan_xmit_one"): Reason(
        "there is no route to the tunnel's other end", (*_NO_WAY, Cause.WRONG_FDB, Cause.UNDERLAY)
    ),
}

_REASONS = {
    "NETFILTER_DROP": _FILTERED,
    "IP_RPFILTER": Reason("the reverse-path filter", (Cause.RP_FILTER,)),
    "IP_INNOROUTES": Reason("no route to forward it by", _NO_WAY),
    "IP_OUTNOROUTES": Reason("no route to send it by", _NO_WAY),
    "IP_INADDRERRORS": Reason(
        "this host does not forward packets", (Cause.NOT_FORWARDING, Cause.NOT_IN_USE)
    ),
    "PKT_TOO_BIG": _TOO_BIG,
    "NEIGH_FAILED": Reason(_UNANSWERED, _UNRESOLVED),
    "NEIGH_CREATEFAIL": Reason("the neighbour table is full"),
    "NEIGH_QUEUEFULL": Reason("too many packets wait for the next hop's MAC", _UNRESOLVED),
    "NEIGH_DEAD": Reason("the neighbour entry was removed meanwhile", _UNRESOLVED),
    "NO_TX_TARGET": Reason("there is nowhere to send it", (*_UNREACHABLE_PORT, Cause.NO_NEIGHBOR)),
    "BRIDGE_INGRESS_STP_STATE": Reason("the bridge or its port is down", (Cause.LINK_DOWN,)),
    "OTHERHOST": Reason(
        "the frame is for another MAC",
        (
            Cause.WRONG_NEIGHBOR,
            Cause.WRONG_FDB,
            Cause.NO_NEIGHBOR,
            Cause.WRONG_ROUTE,
            Cause.LINK_MISSING,
        ),
    ),
    "VXLAN_VNI_NOT_FOUND": Reason(
        "no VXLAN device has its VNI", (Cause.LINK_MISSING, Cause.LINK_DOWN)
    ),
    "VXLAN_INVALID_HDR": Reason("its VXLAN header is damaged"),
    "IPV6DISABLED": Reason("IPv6 is switched off on the interface"),
    "DEV_READY": Reason("the interface is not up", (Cause.LINK_DOWN,)),
    "IP_LOCAL_SOURCE": Reason("its source is one of this host's own addresses"),
    "IP_INVALID_SOURCE": Reason("its source can't be one"),
    "IP_INVALID_DEST": Reason("its target can't be one"),
    "IP_LOCALNET": Reason("loopback addresses may not be on the wire"),
    "TC_INGRESS": Reason("a filter of traffic control (tc, maybe a BPF program) on the way in"),
    "TC_EGRESS": Reason("a filter of traffic control (tc, maybe a BPF program) on the way out"),
    "XDP": Reason("an XDP program"),
    "BPF_CGROUP_EGRESS": Reason("a BPF program of the sender's cgroup"),
    "SECURITY_HOOK": Reason("a security module (SELinux, AppArmor)"),
    "XFRM_POLICY": Reason("an IPsec policy"),
    "QDISC_DROP": Reason("the interface's queue (qdisc) is full or drops on purpose"),
    "QDISC_OVERLIMIT": Reason("the interface's queue (qdisc) is full"),
    "QDISC_CONGESTED": Reason("the interface's queue (qdisc) is congested"),
    "CPU_BACKLOG": Reason("the CPU's backlog is full (net.core.netdev_max_backlog)"),
    "FULL_RING": Reason("the interface's ring is full"),
    "NOMEM": Reason("out of memory"),
    "SOCKET_RCVBUFF": Reason("the socket's receive buffer is full"),
    "TCP_LISTEN_OVERFLOW": Reason("the listening socket's queue is full"),
    "UDP_CSUM": Reason("its UDP checksum is wrong"),
    "TCP_CSUM": Reason("its TCP checksum is wrong"),
    "ICMP_CSUM": Reason("its ICMP checksum is wrong"),
    "IP_CSUM": Reason("its IP checksum is wrong"),
    "SKB_CSUM": Reason("its checksum can't be computed"),
}

_NO_LISTENER = Reason("nothing listens there", (Cause.REFUSED, Cause.NOT_IN_USE))
_NO_TUNNEL = Reason("no VXLAN device takes it", (Cause.LINK_DOWN, Cause.LINK_MISSING))


def is_final(reason: str, location: str) -> bool:
    """Whether the reason says that it was more than a copy that a bridge had sent to everybody."""
    return reason != "OTHERHOST" and bool(reason_of(reason, location).causes)


def reason_of(reason: str, location: str, *, encapsulated: bool = False) -> Reason:
    """What the kernel means. `encapsulated`: the packet that it dropped was in a tunnel still."""
    if reason == "NO_SOCKET":
        return _NO_TUNNEL if encapsulated else _NO_LISTENER
    if (found := _AT.get((reason, location))) is not None:
        return found
    return _REASONS.get(reason) or Reason(f"{reason} in {location}")
