"""The filter that lets a probe's packets through, and nothing else.

What lives here: `ProbeMatch` as a classic BPF program; what matches is said there. What does not:
other filters.

The program follows the headers, with X at the header that it looks at, relative to the network
header that the kernel found: so it is the same for devices with and without link headers. What a
packet carries is looked at in stages, each of which reads a packet by the same rules:

    OUTER ──tunnel──▶ INNER ──ICMP error──▶ QUOTED ──tunnel──▶ QUOTED_INNER
      └───────────────ICMP error──────────────┘

A tunnel is VXLAN, or an IP packet bare in a UDP datagram.

Traffic that does not match is turned away as early as it can be, after three to six loads: by its
protocol before its header's length, by its ports before anything else of the transport.
"""

from __future__ import annotations

import enum
from ipaddress import IPv4Address, IPv6Address, ip_address

from podwire.kernel.observe import cbpf
from podwire.kernel.observe.cbpf import BYTE, HALF, JEQ, JSET, SKF_NET_OFF, WORD, Label
from podwire.kernel.observe.headers import (
    ACK,
    ARP,
    BARE_PACKET,
    ECHO,
    ERRORS,
    ETHERTYPES,
    FLAGS,
    FRAGMENT,
    ICMP,
    NDP,
    QUOTED,
    RST,
    SOURCE,
    SYN,
    TARGET,
    TCP,
    UDP,
    VXLAN_PACKET,
    VXLAN_TYPE,
)
from podwire.model.probe import MAGIC, ProbeMatch

_ETHERNET_IPV4 = 0x0604  # ARP's lengths of addresses (RFC 826)

#: Memory slots: where the IP header is while X is at its transport header, and the other way.
_IP, _TRANSPORT = 0, 1


class _Stage(enum.IntEnum):
    OUTER = 0
    INNER = 1
    QUOTED = 2
    QUOTED_INNER = 3


#: What a stage leads to, for those where it may. A tunnel in a tunnel is not ours.
_INSIDE = {_Stage.OUTER: _Stage.INNER, _Stage.QUOTED: _Stage.QUOTED_INNER}
_ABOUT = {_Stage.OUTER: _Stage.QUOTED, _Stage.INNER: _Stage.QUOTED}
#: Where ARP and NDP are: in frames, and not in what is quoted.
_LINKS = (_Stage.OUTER, _Stage.INNER)


def probe_filter(match: ProbeMatch) -> tuple[cbpf.Insn, ...]:
    """The program for SO_ATTACH_FILTER. Raises ValueError for addresses of different families,
    and for so many `neighbors` that the program gets too long (more than a hundred)."""
    return _ProbeFilter(match).assemble()


class _ProbeFilter:
    def __init__(self, match: ProbeMatch) -> None:
        self._match = match
        self._source, self._target = ip_address(match.source), ip_address(match.target)
        if self._source.version != self._target.version:
            raise ValueError(f"{match.source} and {match.target} are of different families")
        self._version = self._source.version
        self._protocol = {"icmp": ICMP[self._version], "tcp": TCP, "udp": UDP}[match.protocol]
        neighbors = [ip_address(neighbor) for neighbor in match.neighbors]
        self._arp_neighbors = [one for one in neighbors if isinstance(one, IPv4Address)]
        self._ndp_neighbors = [one for one in neighbors if isinstance(one, IPv6Address)]
        self._tunnels = bool(match.tunnel_ports or match.bare_ports)
        self._asm = cbpf.Assembler()
        self._accept, self._reject = Label("accept"), Label("reject")
        self._echo, self._fragment = Label("echo"), Label("not the first fragment")
        self._arp, self._ndp = Label("ARP"), Label("NDP")
        self._packets = {
            (stage, version): Label(f"{stage.name} IPv{version}")
            for stage in _Stage
            for version in (4, 6)
        }

    def assemble(self) -> tuple[cbpf.Insn, ...]:
        asm = self._asm
        asm.load_x(0)
        asm.load(HALF, cbpf.AD_PROTOCOL)
        self._by_ethertype(_Stage.OUTER)
        for (stage, version), label in self._packets.items():
            if self._may_match(stage, version):
                asm.place(label)
                self._packet(stage, version)
        asm.place(self._fragment)
        self._judge_fragment()
        if self._is_own(ICMP[self._version], self._version):
            asm.place(self._echo)
            self._judge_echo()
        if self._arp_neighbors:
            asm.place(self._arp)
            self._judge_arp()
        if self._ndp_neighbors:
            asm.place(self._ndp)
            self._judge_ndp()
        asm.place(self._reject)
        asm.end(0)
        asm.place(self._accept)
        asm.end(cbpf.ALL)
        return asm.assemble()

    # --- what may be where ----------------------------------------------------------------------

    def _is_own(self, protocol: int, version: int) -> bool:
        return protocol == self._protocol and version == self._version

    def _may_match(self, stage: _Stage, version: int) -> bool:
        """Whether an IP packet of that version may match at that stage, or behind it."""
        if stage in _INSIDE.values() and not self._tunnels:
            return False
        return (
            version == self._version
            or self._may_be_tunnel(stage)
            or self._may_be_ndp(stage, version)
        )

    def _may_be_tunnel(self, stage: _Stage) -> bool:
        return stage in _INSIDE and self._tunnels

    def _may_be_error(self, stage: _Stage, version: int) -> bool:
        return stage in _ABOUT and self._may_match(_ABOUT[stage], version)

    def _may_be_ndp(self, stage: _Stage, version: int) -> bool:
        return version == 6 and stage in _LINKS and bool(self._ndp_neighbors)

    # --- packets: X is at the IP header ---------------------------------------------------------

    def _by_ethertype(self, stage: _Stage) -> None:
        """A is the EtherType of what X is at. Ends by a jump."""
        for version, ethertype in ETHERTYPES.items():
            if self._may_match(stage, version):
                self._asm.jump_if(JEQ, ethertype, then=self._packets[stage, version])
        if self._arp_neighbors and stage in _LINKS:
            self._asm.jump_if(JEQ, ARP, then=self._arp)
        self._asm.jump(self._reject)

    def _by_version(self, stage: _Stage) -> None:
        """X is at an IP header of either version. Ends by a jump."""
        self._load(BYTE, 0)
        self._asm.compute(cbpf.RSH, 4)
        for version in (4, 6):
            if self._may_match(stage, version):
                self._asm.jump_if(JEQ, version, then=self._packets[stage, version])
        self._asm.jump(self._reject)

    def _packet(self, stage: _Stage, version: int) -> None:
        """Ends by a jump."""
        asm = self._asm
        asm.store_x(_IP)
        if version == 4:
            self._load(BYTE, 9)
            self._by_protocol(stage, version)
        else:
            extended = Label("fragment header")
            self._load(BYTE, 6)
            asm.jump_if(JEQ, FRAGMENT, then=extended)
            self._by_protocol(stage, version)
            asm.place(extended)
            self._load(BYTE, 40)
            self._by_protocol(stage, version, extended=True)

    def _by_protocol(self, stage: _Stage, version: int, *, extended: bool = False) -> None:
        """A is the protocol; `extended`: after a fragment header. Ends by a jump."""
        judges = {UDP: self._udp, TCP: self._tcp, ICMP[version]: self._icmp}
        worth = [
            protocol
            for protocol in judges
            if self._is_own(protocol, version)
            or (protocol == UDP and self._may_be_tunnel(stage))
            or (protocol == ICMP[version] and self._may_be_error(stage, version))
            or (protocol == ICMP[6] and self._may_be_ndp(stage, version))
        ]
        labels = {protocol: Label(f"protocol {protocol}") for protocol in worth}
        for protocol in worth:
            self._asm.jump_if(JEQ, protocol, then=labels[protocol])
        self._asm.jump(self._reject)
        for protocol in worth:
            self._asm.place(labels[protocol])
            later = self._fragment if self._is_own(protocol, version) else self._reject
            if version == 4:
                self._to_transport_of_ipv4(later)
            else:
                self._to_transport_of_ipv6(later, extended=extended)
            judges[protocol](stage, version)
            self._asm.jump(self._reject)

    def _to_transport_of_ipv4(self, later: Label) -> None:
        """X goes on to the transport header; a later fragment, which has none, to `later`."""
        asm = self._asm
        self._load(HALF, 6)
        asm.jump_if(JSET, 0x1FFF, then=later)
        self._load(BYTE, 0)
        asm.compute(cbpf.AND, 0x0F)
        asm.compute(cbpf.LSH, 2)
        asm.compute_x(cbpf.ADD)
        asm.a_to_x()

    def _to_transport_of_ipv6(self, later: Label, *, extended: bool) -> None:
        if extended:
            self._load(HALF, 42)
            self._asm.jump_if(JSET, 0xFFF8, then=later)
        self._advance(48 if extended else 40)

    # --- transports: X is at their header, _IP says where the IP header is ----------------------
    # They fall through where the packet does not match.

    def _udp(self, stage: _Stage, version: int) -> None:
        if self._is_own(UDP, version):
            self._ports(stage)
        if not self._may_be_tunnel(stage):
            return
        asm, vxlan, bare = self._asm, Label("VXLAN"), Label("bare")
        self._load(HALF, 2)
        for port in self._match.tunnel_ports:
            asm.jump_if(JEQ, port, then=vxlan)
        for port in self._match.bare_ports:
            asm.jump_if(JEQ, port, then=bare)
        asm.jump(self._reject)
        if self._match.tunnel_ports:
            asm.place(vxlan)
            self._advance(VXLAN_PACKET)
            self._load(HALF, VXLAN_TYPE - VXLAN_PACKET)
            self._by_ethertype(_INSIDE[stage])
        if self._match.bare_ports:
            asm.place(bare)
            self._advance(BARE_PACKET)
            self._by_version(_INSIDE[stage])

    def _tcp(self, stage: _Stage, version: int) -> None:
        self._ports(stage)

    def _ports(self, stage: _Stage) -> None:
        match, asm = self._match, self._asm
        port = match.port or 0
        self._load(WORD, 0)
        asm.jump_if(JEQ, match.ident << 16 | port, then=self._accept)
        asm.jump_if(JEQ, port << 16 | match.ident, then=self._accept)
        if not match.translated:
            return
        asm.store_x(_TRANSPORT)
        for at, address in ((2, TARGET), (0, SOURCE)):
            other, elsewhere = Label("other port"), Label("other address")
            self._load(HALF, at)
            asm.jump_if(JEQ, port, otherwise=other)
            asm.load_x_memory(_IP)
            self._equals(address[self._version], self._target, otherwise=elsewhere)
            if stage in _LINKS:
                asm.load_x_memory(_TRANSPORT)
                self._may_be_translated(asks=address is TARGET)
            asm.jump(self._accept)
            asm.place(elsewhere)
            asm.load_x_memory(_TRANSPORT)
            asm.place(other)

    def _may_be_translated(self, *, asks: bool) -> None:
        """Falls through unless the packet shows that it is another's. X is at the transport."""
        asm = self._asm
        if self._protocol == TCP:
            self._load(BYTE, FLAGS)
            if asks:
                asm.compute(cbpf.AND, SYN | ACK)
                asm.jump_if(JEQ, SYN, otherwise=self._reject)
            else:
                asm.jump_if(JSET, ACK, otherwise=self._reject)
                asm.jump_if(JSET, SYN | RST, otherwise=self._reject)
        elif asks:
            self._load(WORD, 8)
            asm.jump_if(JEQ, int.from_bytes(MAGIC, "big"), otherwise=self._reject)
            self._load(HALF, 12)
            asm.jump_if(JEQ, self._match.ident, otherwise=self._reject)

    def _icmp(self, stage: _Stage, version: int) -> None:
        asm, error = self._asm, Label("error")
        quotes = self._may_be_error(stage, version)
        self._load(BYTE, 0)
        for possible, types, label in (
            (self._is_own(ICMP[version], version), ECHO[version], self._echo),
            (self._may_be_ndp(stage, version), NDP, self._ndp),
            (quotes, ERRORS[version], error),
        ):
            if possible:
                for kind in types:
                    asm.jump_if(JEQ, kind, then=label)
        if quotes:
            asm.jump(self._reject)
            asm.place(error)
            self._advance(QUOTED)
            asm.jump(self._packets[_ABOUT[stage], version])

    # --- the last word: each ends by a jump -----------------------------------------------------

    def _judge_fragment(self) -> None:
        """X is at the IP header."""
        back = Label("the way back")
        source, target = SOURCE[self._version], TARGET[self._version]
        self._equals(source, self._source, otherwise=back)
        self._equals(target, self._target, otherwise=self._reject)
        self._asm.jump(self._accept)
        self._asm.place(back)
        self._equals(source, self._target, otherwise=self._reject)
        self._equals(target, self._source, otherwise=self._reject)
        self._asm.jump(self._accept)

    def _judge_echo(self) -> None:
        """X is at the ICMP header."""
        asm, ident = self._asm, self._match.ident
        self._load(HALF, 4)
        asm.jump_if(JEQ, ident, then=self._accept)
        self._load(WORD, 8)
        asm.jump_if(JEQ, int.from_bytes(MAGIC, "big"), otherwise=self._reject)
        self._load(HALF, 12)
        asm.jump_if(JEQ, ident, then=self._accept, otherwise=self._reject)

    def _judge_arp(self) -> None:
        """X is at the ARP header (RFC 826)."""
        self._load(HALF, 4)
        self._asm.jump_if(JEQ, _ETHERNET_IPV4, otherwise=self._reject)
        for neighbor in self._arp_neighbors:
            for sender_or_target in (14, 24):
                self._accept_if(sender_or_target, neighbor)
        self._asm.jump(self._reject)

    def _judge_ndp(self) -> None:
        """X is at the ICMPv6 header (RFC 4861 4.3 and 4.4)."""
        for neighbor in self._ndp_neighbors:
            self._accept_if(8, neighbor)
        self._asm.load_x_memory(_IP)
        for neighbor in self._ndp_neighbors:
            self._accept_if(SOURCE[6], neighbor)
            self._accept_if(TARGET[6], neighbor)
        self._asm.jump(self._reject)

    def _accept_if(self, offset: int, ip: IPv4Address | IPv6Address) -> None:
        other = Label("other address")
        self._equals(offset, ip, otherwise=other)
        self._asm.jump(self._accept)
        self._asm.place(other)

    def _equals(self, offset: int, ip: IPv4Address | IPv6Address, *, otherwise: Label) -> None:
        """Falls through where the address at X + offset is `ip`."""
        for at in range(len(ip.packed) - 4, -1, -4):  # the end tells most addresses apart
            self._load(WORD, offset + at)
            word = int.from_bytes(ip.packed[at : at + 4], "big")
            self._asm.jump_if(JEQ, word, otherwise=otherwise)

    # --- the machine ----------------------------------------------------------------------------

    def _load(self, size: int, offset: int) -> None:
        self._asm.load(size, SKF_NET_OFF + offset, indexed=True)

    def _advance(self, count: int) -> None:
        self._asm.x_to_a()
        self._asm.compute(cbpf.ADD, count)
        self._asm.a_to_x()
