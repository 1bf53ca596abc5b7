"""What of a packet the kernel's decisions depend on: addresses, ports, size, MACs.

What lives here: the values, and reading them out of a decoded packet's headers. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from podwire.kernel.observe.lookup_messages import RouteQuestion
from podwire.model.state import IPAddress, parse_mac
from podwire.trace.model import Ethernet, Header, Ip, Tcp, Tunnel, Udp, Vxlan

#: The unspecified address, by IP version.
NOWHERE: dict[int, IPAddress] = {4: IPv4Address(0), 6: IPv6Address(0)}


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """A packet as routing sees it. MACs are empty where there is no link header.

    `inner` is what it carries in a tunnel: in VXLAN, with the network's number in `vni`, or bare
    in a datagram, without one.
    """

    src: IPAddress
    dst: IPAddress
    protocol: int = 0
    sport: int = 0
    dport: int = 0
    tos: int = 0
    ttl: int = 64
    length: int = 0
    dont_fragment: bool = False
    source_mac: bytes = b""
    target_mac: bytes = b""
    vni: int | None = None
    inner: Flow | None = None

    @property
    def version(self) -> int:
        return self.dst.version

    def question(self, *, iif: int = 0, mark: int = 0) -> RouteQuestion:
        """The route that it takes, having come in by an interface, or sent from here."""
        return RouteQuestion(
            dst=self.dst.packed,
            src=b"" if self.src.is_unspecified else self.src.packed,
            iif=iif,
            mark=mark,
            tos=self.tos,
            protocol=self.protocol,
            sport=self.sport,
            dport=self.dport,
        )

    def answer(self) -> Flow:
        """A packet the other way; how long that is, nobody knows."""
        return msgspec.structs.replace(
            self,
            src=self.dst,
            dst=self.src,
            sport=self.dport,
            dport=self.sport,
            length=0,
            ttl=64,
            source_mac=b"",
            target_mac=b"",
            inner=None,
        )


def flow_of(headers: Sequence[Header]) -> Flow | None:
    """The outermost IP packet; None where there is none, as in ARP."""
    source_mac = target_mac = b""
    for at, header in enumerate(headers):
        match header:
            case Ethernet():
                source_mac, target_mac = parse_mac(header.source), parse_mac(header.target)
            case Ip():
                upper = headers[at + 1] if at + 1 < len(headers) else None
                ports = isinstance(upper, Udp | Tcp)
                vni, inner = _carried(headers[at + 1 :])
                # Without a way the stack chooses no source: then it is empty.
                return Flow(
                    src=ip_address(header.source) if header.source else NOWHERE[header.version],
                    dst=ip_address(header.target),
                    protocol=header.protocol,
                    sport=upper.source_port if ports else 0,  # type: ignore[union-attr]
                    dport=upper.target_port if ports else 0,  # type: ignore[union-attr]
                    tos=header.tos,
                    ttl=header.ttl,
                    length=header.length,
                    dont_fragment=header.dont_fragment or header.version == 6,
                    source_mac=source_mac,
                    target_mac=target_mac,
                    vni=vni,
                    inner=inner,
                )
    return None


def _carried(headers: Sequence[Header]) -> tuple[int | None, Flow | None]:
    for at, header in enumerate(headers):
        if isinstance(header, Vxlan):
            return header.vni, flow_of(headers[at + 1 :])
        if isinstance(header, Tunnel):
            return None, flow_of(headers[at + 1 :])
    return None, None
