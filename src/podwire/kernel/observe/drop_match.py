"""The part of the drop program that knows whether a packet is the probe's.

It judges by the rules of `podwire.model.probe.ProbeMatch` (but for `neighbors`) at a cursor:

    head ─────────── network header ──────────────────────────── tail
                     │ IP │ UDP 8472 │ VXLAN │ Ethernet │ IP │ ICMP …
                     └─ cursor ─────────────────────────┘

A tunnel's packet moves the cursor to what is inside, an ICMP error to what it quotes, and it judges
again. So it makes no difference whether a packet is dropped before, while or after it is wrapped.
What is the probe's goes on at the label `hit`, all else at `out`.
"""

from __future__ import annotations

from ipaddress import ip_address

from podwire.kernel.observe.drop_assembly import (
    IN_ERROR,
    IP,
    LEVEL,
    R1,
    R2,
    R3,
    R4,
    R6,
    R8,
    R10,
    SCRATCH,
    UPPER,
    Assembly,
)
from podwire.kernel.observe.drop_layout import Layout
from podwire.kernel.observe.headers import (
    ACK,
    BARE_PACKET,
    ECHO,
    ERRORS,
    ETHERTYPES,
    FLAGS,
    FRAGMENT,
    ICMP,
    QUOTED,
    RST,
    SOURCE,
    SYN,
    TARGET,
    TCP,
    UDP,
    VXLAN_FRAME,
)
from podwire.model.probe import MAGIC, ProbeMatch

#: IP headers looked at, one inside of the other. Four are had by a VXLAN packet that carries an
#: error, which quotes another VXLAN packet.
_LEVELS = 4
_ETHERNET = 14


class Match(Assembly):
    """A program in the making that knows whose a packet is."""

    def __init__(self, match: ProbeMatch, where: Layout) -> None:
        super().__init__(where)
        self.match = match
        source, target = ip_address(match.source), ip_address(match.target)
        if source.version != target.version:
            raise ValueError(f"{source} and {target} are of different families")
        self.version = target.version
        self.source, self.target = source.packed, target.packed
        self.protocol = {"icmp": ICMP[self.version], "tcp": TCP, "udp": UDP}[match.protocol]
        self.ident = match.ident.to_bytes(2, "big")
        self.port = (match.port or 0).to_bytes(2, "big")

    def judge(self) -> None:
        program = self.program
        program.label("judge")
        self.within(20)
        self.read(IP, 40, R8)
        program.load(1, R1, R10, IP)
        program.alu(">>", R1, 4)
        program.jump_if(R1, "==", 4, "ip 4")
        program.jump_if(R1, "!=", 6, "out")
        self._ip6()
        self._upper(6)
        program.label("ip 4")
        self._ip4()
        self._upper(4)
        self._fragment()
        self._ports()
        self._echo()
        self._tunnel()
        program.label("quoted")
        program.store(8, R10, IN_ERROR, 1)
        program.alu("+", R8, QUOTED)
        program.label("again")
        program.load(8, R1, R10, LEVEL)
        program.alu("+", R1, 1)
        program.store(8, R10, LEVEL, R1)
        program.jump_if(R1, "<", _LEVELS, "judge")
        program.jump("out")

    def _ip4(self) -> None:
        program = self.program
        program.load(1, R6, R10, IP + 9)
        program.load(2, R1, R10, IP + 6)
        program.jump_if(R1, "&", _network(0x1FFF), self._later_fragment(4))
        program.load(1, R1, R10, IP)
        program.alu("&", R1, 0x0F)
        program.alu("<<", R1, 2)
        program.alu("+", R8, R1)

    def _ip6(self) -> None:
        program = self.program
        self.within(40)
        program.load(1, R6, R10, IP + 6)
        program.alu("+", R8, 40)
        program.jump_if(R6, "!=", FRAGMENT, "upper 6")
        self.within(8)
        self.read(SCRATCH, 8, R8)
        program.load(1, R6, R10, SCRATCH)
        program.load(2, R1, R10, SCRATCH + 2)
        program.jump_if(R1, "&", _network(0xFFF8), self._later_fragment(6))
        program.alu("+", R8, 8)

    def _later_fragment(self, version: int) -> str:
        return "fragment" if version == self.version else "out"

    def _upper(self, version: int) -> None:
        """What follows an IP header of that version. In the other family than the probe's, it can
        only be what carries it."""
        program = self.program
        own = version == self.version
        program.label(f"upper {version}")
        self.within(8)
        self.read(UPPER, 16, R8)
        program.jump_if(R6, "==", ICMP[version], f"icmp {version}")
        if own and self.match.protocol != "icmp":
            program.jump_if(R6, "==", self.protocol, "ports")
        program.jump_if(R6, "==", UDP, "tunnel")
        program.jump("out")

        program.label(f"icmp {version}")
        program.load(1, R1, R10, UPPER)
        for kind in ERRORS[version]:
            program.jump_if(R1, "==", kind, "quoted")
        if own and self.match.protocol == "icmp":
            for kind in ECHO[version]:
                program.jump_if(R1, "==", kind, "echo")
        program.jump("out")

    def _fragment(self) -> None:
        """A later one has nothing to know it by but its addresses."""
        sender, receiver = self._addresses()
        self.program.label("fragment")
        self.program.jump_if(R6, "!=", self.protocol, "out")
        self._hit_if("forth", (sender, self.source), (receiver, self.target))
        self._hit_if("back", (sender, self.target), (receiver, self.source))
        self.program.jump("out")

    def _ports(self) -> None:
        if self.match.protocol == "icmp":
            return
        program = self.program
        program.label("ports")
        self._hit_if("asked", (UPPER, self.ident + self.port))
        self._hit_if("answered", (UPPER, self.port + self.ident))
        if self.match.translated:
            self._translated()
        program.jump_if(R6, "==", UDP, "tunnel")
        program.jump("out")

    def _translated(self) -> None:
        program, protocol = self.program, self.match.protocol
        sender, receiver = self._addresses()
        to = ((receiver, self.target), (UPPER + 2, self.port))
        back = ((sender, self.target), (UPPER, self.port))
        program.load(8, R1, R10, IN_ERROR)
        program.jump_if(R1, "==", 0, "not in an error")
        self._hit_if("quoted to target", *to)
        self._hit_if("quoted from target", *back)
        program.jump("no translation")
        program.label("not in an error")
        if protocol == "udp":
            self._hit_if("to target", *to, (UPPER + 8, MAGIC + self.ident))
            self._hit_if("from target", *back)
        else:
            program.load(1, R3, R10, UPPER + FLAGS)
            program.mov(R4, R3)
            program.alu("&", R4, SYN | ACK)
            program.jump_if(R4, "!=", SYN, "no SYN")
            self._hit_if("to target", *to)
            program.label("no SYN")
            program.jump_if(R4, "<", ACK, "no translation")
            program.alu("&", R3, SYN | RST)
            program.jump_if(R3, "==", 0, "no translation")
            self._hit_if("from target", *back)
        program.label("no translation")

    def _echo(self) -> None:
        if self.match.protocol != "icmp":
            return
        self.program.label("echo")
        self._hit_if("ident", (UPPER + 4, self.ident))
        self.within(8 + len(MAGIC) + 2)
        self._hit_if("payload", (UPPER + 8, MAGIC + self.ident))
        self.program.jump("out")

    def _tunnel(self) -> None:
        program = self.program
        program.label("tunnel")
        program.load(2, R1, R10, UPPER + 2)
        for port in self.match.tunnel_ports:
            program.jump_if(R1, "==", _network(port), "inside")
        for port in self.match.bare_ports:
            program.jump_if(R1, "==", _network(port), "bare")
        program.jump("out")
        if self.match.tunnel_ports:
            program.label("inside")
            self.within(VXLAN_FRAME + _ETHERNET)
            self.read(SCRATCH, 2, R8, VXLAN_FRAME + 12)
            program.load(2, R1, R10, SCRATCH)
            program.alu("+", R8, VXLAN_FRAME + _ETHERNET)
            for ethertype in ETHERTYPES.values():
                program.jump_if(R1, "==", _network(ethertype), "again")
            program.jump("out")
        if self.match.bare_ports:
            program.label("bare")
            program.alu("+", R8, BARE_PACKET)
            program.jump("again")

    def _addresses(self) -> tuple[int, int]:
        """Where on the frame a packet of the probe's family has its source and its target."""
        return IP + SOURCE[self.version], IP + TARGET[self.version]

    def _hit_if(self, name: str, *equals: tuple[int, bytes]) -> None:
        """If the frame has these bytes at these places."""
        program = self.program
        other = f"not {name}"
        for at, wanted in equals:
            while wanted:
                # The kernel wants what is on the frame to be read at multiples of its size.
                size = next(n for n in (8, 4, 2, 1) if n <= len(wanted) and at % n == 0)
                program.load(size, R1, R10, at)
                program.load64(R2, int.from_bytes(wanted[:size], "little"))
                program.jump_if(R1, "!=", R2, other)
                at, wanted = at + size, wanted[size:]
        program.jump("hit")
        program.label(other)


def _network(value: int) -> int:
    """Two bytes in network order, as a little-endian machine loads them."""
    return int.from_bytes(value.to_bytes(2, "big"), "little")
