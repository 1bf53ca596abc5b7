"""What a probe is, and how its packets are recognised wherever they pass.

Values only, frozen, without I/O. `podwire.kernel.observe` makes kernel filters out of a match,
`podwire.trace` asks for probes and reads what was seen.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Protocol = Literal["icmp", "tcp", "udp"]

#: An IP address in canonical text, as `str(ip_address(…))` gives it: these values travel between
#: machines and end in JSON.
IPText = str

#: The first bytes of each ICMP and UDP probe's payload, before its 4 bytes of `ident` and number:
#: an address translator changes ports and identifiers, and leaves these.
MAGIC = b"podw"


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. `size` is the IP packet's length in bytes, None for the usual one.

    `port` is the destination's (None for ICMP). `count` probes are sent one after the other, each
    given `timeout_s` to be answered. IPv4 packets carry DF.
    """

    protocol: Protocol = "icmp"
    target: IPText
    port: int | None = None
    size: int | None = None
    count: int = 1
    timeout_s: float = 1.0
    #: The source address, None for the one that the sender's own stack chooses.
    source: IPText | None = None


class ProbeMatch(msgspec.Struct, frozen=True, kw_only=True):
    """What a kernel filter lets through: one prober's packets, both ways, also inside of tunnels.

    A packet matches if, at its network header, at the inner one of a VXLAN packet to one of
    `tunnel_ports`, or at that of a packet which is bare in a UDP datagram to one of `bare_ports`
    (outer IPv4 or IPv6 both), one of these holds. `icmp` is ICMPv6 where the addresses
    are IPv6.

    - ICMP echo request or reply whose identifier is `ident`, or that carries `MAGIC` and `ident`
      at the start of its payload.
    - TCP or UDP whose ports are `ident` (the prober's own) and `port`, in either order.
    - with `translated`, since a translator may have given it another source port: to `target` and
      `port`, UDP with `MAGIC` and `ident` at the start of its payload, or TCP's SYN; from them,
      UDP, or TCP that answers a SYN (ACK, with SYN or RST). So others' traffic with the same
      host and port is let through as far as nothing tells that it is others'.
    - a fragment other than the first, of that protocol between `source` and `target`, either way
      (the first is matched like a whole packet).
    - an ICMP error that quotes any of these; with `translated`, any TCP or UDP to or from
      `target` and `port`, since a quotation may end after the ports.
    - ARP, or NDP solicitation and advertisement, about one of `neighbors` (asked for, or asking).
    """

    protocol: Protocol
    source: IPText
    target: IPText
    ident: int
    port: int | None = None
    translated: bool = False
    neighbors: tuple[IPText, ...] = ()
    tunnel_ports: tuple[int, ...] = (8472,)
    bare_ports: tuple[int, ...] = ()
