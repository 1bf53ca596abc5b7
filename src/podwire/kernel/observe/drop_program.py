"""The eBPF program that tells which of a probe's packets the kernel drops.

What lives here: the program, assembled for one match and one kernel, and the record that it
writes. What does not: loading it, and what becomes of the records.

It runs for each packet that the whole machine drops, in any namespace, so it leaves at the first
sign that a packet is another's. It reads the packet as the kernel has it:

    head ─────────── network header ──────────────────────────── tail
                     │ IP │ UDP 8472 │ VXLAN │ Ethernet │ IP │ ICMP …
                     └─ cursor ─────────────────────────┘

and judges by the rules of `podwire.model.probe.ProbeMatch` (but for `neighbors`) at a cursor. A
tunnel's packet moves the cursor to what is inside, an ICMP error to what it quotes, and it judges
again. So it makes no difference whether a packet is dropped before, while or after it is wrapped:
the network header is the inner packet's until there is an outer one, and again once `vxlan_rcv`
has taken that off. Where none has been set yet (a packet fresh from a driver), the data begin
with it.

Nothing is read beyond `tail`: there lie the bytes of packets past. What is not in the packet's
first piece (paged data) is not looked at; headers are there.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address

from podwire.kernel.observe.drop_layout import Layout
from podwire.kernel.observe.ebpf import Program, Reg
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

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Reg

#: The helpers used need a program that says it is under a licence compatible with the GPL. This
#: is what the assembled program is offered under.
LICENCE = "Dual BSD/GPL"
#: bpf_snprintf's: the name of the function that an address lies in.
SYMBOL_FORMAT = b"%ps\0"

#: Reasons with which a packet is freed that was not dropped, or was but a packet socket's copy
#: (tcpdump's, our own) that its ring had no room for.
NOT_DROPS = frozenset({"NOT_DROPPED_YET", "CONSUMED", "PACKET_SOCK_ERROR"})

DATA_BYTES = 192
#: What the program tells, followed by up to DATA_BYTES of the packet: time, reason, the socket's
#: namespace; namespace and ifindex of the packet's device and of its route's; both devices'
#: names; the function.
RECORD = struct.Struct("<QIIIIII16s16s64s")

# enum bpf_func_id
_KTIME_GET_NS, _PROBE_READ_KERNEL, _RINGBUF_OUTPUT, _SNPRINTF = 5, 113, 130, 165

# The frame, in bytes from R10. The record and the packet's bytes after it lie together.
_TIME = -(RECORD.size + DATA_BYTES)
_REASON, _SOCKET_NETNS = _TIME + 8, _TIME + 12
_DEVICE, _ROUTE = _TIME + 16, _TIME + 24
_DEVICE_NAME, _ROUTE_NAME, _SYMBOL = _TIME + 32, _TIME + 48, _TIME + 64
_DATA = _TIME + RECORD.size
_IP = _TIME - 40  # the IP header at the cursor
_UPPER = _IP - 16  # what comes after it
_PACKET = _UPPER - 8  # struct sk_buff *
_LOCATION = _PACKET - 8
_SOCKET = _LOCATION - 8  # the receiving struct sock *, where the tracepoint tells
_LEVEL = _SOCKET - 8
_IN_ERROR = _LEVEL - 8  # whether an ICMP error quotes what is at the cursor
_SCRATCH = _IN_ERROR - 8

#: IP headers looked at, one inside of the other. Four are had by a VXLAN packet that carries an
#: error, which quotes another VXLAN packet.
_LEVELS = 4
_ETHERNET = 14


def assemble(match: ProbeMatch, where: Layout, ring: int, symbol_format: int) -> bytes:
    """The program for `match`; it writes to the ring buffer map `ring`. `symbol_format` is the
    descriptor of a constant map with SYMBOL_FORMAT."""
    return _Writer(match, where).write(ring, symbol_format)


class _Writer:
    """Registers throughout: R6 the upper protocol's number, R7 where the packet begins, R8 the
    cursor, R9 where the packet ends."""

    def __init__(self, match: ProbeMatch, where: Layout) -> None:
        self.program = Program()
        self.match = match
        self.where = where
        source, target = ip_address(match.source), ip_address(match.target)
        if source.version != target.version:
            raise ValueError(f"{source} and {target} are of different families")
        self.version = target.version
        self.source, self.target = source.packed, target.packed
        self.protocol = {"icmp": ICMP[self.version], "tcp": TCP, "udp": UDP}[match.protocol]
        self.ident = match.ident.to_bytes(2, "big")
        self.port = (match.port or 0).to_bytes(2, "big")

    def write(self, ring: int, symbol_format: int) -> bytes:
        self._begin()
        self._judge()
        self._tell(ring, symbol_format)
        self.program.label("out")
        self.program.mov(R0, 0)
        self.program.exit()
        return self.program.assemble()

    def _begin(self) -> None:
        program, where = self.program, self.where
        program.load(8, R2, R1, 8 * where.reason)
        for value, name in where.reasons.items():
            if name in NOT_DROPS:
                program.jump_if(R2, "==", value, "out")
        program.store(4, R10, _REASON, R2)
        program.load(8, R6, R1, 8 * where.skb)
        program.store(8, R10, _PACKET, R6)
        program.load(8, R2, R1, 8 * where.location)
        program.store(8, R10, _LOCATION, R2)
        program.store(8, R10, _SOCKET, 0)
        if where.socket is not None:
            program.load(8, R2, R1, 8 * where.socket)
            program.store(8, R10, _SOCKET, R2)
        program.store(8, R10, _LEVEL, 0)
        program.store(8, R10, _IN_ERROR, 0)
        self._follow(R7, R6, where.head)
        self._follow(R9, R6, where.tail, 4)
        program.alu("+", R9, R7)
        self._follow(R8, R6, where.network_header, 2)
        program.jump_if(R8, "==", 0, "no network header")
        program.jump_if(R8, "==", 0xFFFF, "no network header")
        program.alu("+", R7, R8)
        program.jump("placed")
        program.label("no network header")
        self._follow(R7, R6, where.data)
        program.label("placed")
        program.mov(R8, R7)

    def _judge(self) -> None:
        program = self.program
        program.label("judge")
        self._within(20)
        self._read(_IP, 40, R8)
        program.load(1, R1, R10, _IP)
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
        program.store(8, R10, _IN_ERROR, 1)
        program.alu("+", R8, QUOTED)
        program.label("again")
        program.load(8, R1, R10, _LEVEL)
        program.alu("+", R1, 1)
        program.store(8, R10, _LEVEL, R1)
        program.jump_if(R1, "<", _LEVELS, "judge")
        program.jump("out")

    def _ip4(self) -> None:
        program = self.program
        program.load(1, R6, R10, _IP + 9)
        program.load(2, R1, R10, _IP + 6)
        program.jump_if(R1, "&", _network(0x1FFF), self._later_fragment(4))
        program.load(1, R1, R10, _IP)
        program.alu("&", R1, 0x0F)
        program.alu("<<", R1, 2)
        program.alu("+", R8, R1)

    def _ip6(self) -> None:
        program = self.program
        self._within(40)
        program.load(1, R6, R10, _IP + 6)
        program.alu("+", R8, 40)
        program.jump_if(R6, "!=", FRAGMENT, "upper 6")
        self._within(8)
        self._read(_SCRATCH, 8, R8)
        program.load(1, R6, R10, _SCRATCH)
        program.load(2, R1, R10, _SCRATCH + 2)
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
        self._within(8)
        self._read(_UPPER, 16, R8)
        program.jump_if(R6, "==", ICMP[version], f"icmp {version}")
        if own and self.match.protocol != "icmp":
            program.jump_if(R6, "==", self.protocol, "ports")
        program.jump_if(R6, "==", UDP, "tunnel")
        program.jump("out")

        program.label(f"icmp {version}")
        program.load(1, R1, R10, _UPPER)
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
        self._hit_if("asked", (_UPPER, self.ident + self.port))
        self._hit_if("answered", (_UPPER, self.port + self.ident))
        if self.match.translated:
            self._translated()
        program.jump_if(R6, "==", UDP, "tunnel")
        program.jump("out")

    def _translated(self) -> None:
        program, protocol = self.program, self.match.protocol
        sender, receiver = self._addresses()
        to = ((receiver, self.target), (_UPPER + 2, self.port))
        back = ((sender, self.target), (_UPPER, self.port))
        program.load(8, R1, R10, _IN_ERROR)
        program.jump_if(R1, "==", 0, "not in an error")
        self._hit_if("quoted to target", *to)
        self._hit_if("quoted from target", *back)
        program.jump("no translation")
        program.label("not in an error")
        if protocol == "udp":
            self._hit_if("to target", *to, (_UPPER + 8, MAGIC + self.ident))
            self._hit_if("from target", *back)
        else:
            program.load(1, R3, R10, _UPPER + FLAGS)
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
        self._hit_if("ident", (_UPPER + 4, self.ident))
        self._within(8 + len(MAGIC) + 2)
        self._hit_if("payload", (_UPPER + 8, MAGIC + self.ident))
        self.program.jump("out")

    def _tunnel(self) -> None:
        program = self.program
        program.label("tunnel")
        program.load(2, R1, R10, _UPPER + 2)
        for port in self.match.tunnel_ports:
            program.jump_if(R1, "==", _network(port), "inside")
        for port in self.match.bare_ports:
            program.jump_if(R1, "==", _network(port), "bare")
        program.jump("out")
        if self.match.tunnel_ports:
            program.label("inside")
            self._within(VXLAN_FRAME + _ETHERNET)
            self._read(_SCRATCH, 2, R8, VXLAN_FRAME + 12)
            program.load(2, R1, R10, _SCRATCH)
            program.alu("+", R8, VXLAN_FRAME + _ETHERNET)
            for ethertype in ETHERTYPES.values():
                program.jump_if(R1, "==", _network(ethertype), "again")
            program.jump("out")
        if self.match.bare_ports:
            program.label("bare")
            program.alu("+", R8, BARE_PACKET)
            program.jump("again")

    def _tell(self, ring: int, symbol_format: int) -> None:
        program, where = self.program, self.where
        program.label("hit")
        for at in range(_SOCKET_NETNS + 4, _DATA, 8):
            program.store(8, R10, at, 0)
        program.store(4, R10, _SOCKET_NETNS, 0)
        program.call(_KTIME_GET_NS)
        program.store(8, R10, _TIME, R0)
        self._frame(R1, _SYMBOL)
        program.mov(R2, _DATA - _SYMBOL)
        program.map_value(R3, symbol_format)
        self._frame(R4, _LOCATION)
        program.mov(R5, 8)
        program.call(_SNPRINTF)

        program.load(8, R6, R10, _PACKET)
        self._follow(R8, R6, where.device)
        self._device(_DEVICE, _DEVICE_NAME, "device told")
        self._follow(R8, R6, where.route)
        program.alu("&", R8, -2)  # the lowest bit says whether the packet holds a reference
        program.jump_if(R8, "==", 0, "route told")
        self._follow(R8, R8, where.route_device)
        self._device(_ROUTE, _ROUTE_NAME, "route told")
        self._follow(R8, R6, where.owner)
        program.jump_if(R8, "!=", 0, "owned")
        program.load(8, R8, R10, _SOCKET)
        program.jump_if(R8, "==", 0, "socket told")
        program.label("owned")
        self._follow(R8, R8, where.socket_netns)
        self._read(_SOCKET_NETNS, 4, R8, where.netns_inode)
        program.label("socket told")

        self._read(_DATA, DATA_BYTES, R7)
        program.mov(R3, R9)
        program.alu("-", R3, R7)
        program.jump_if(R3, "<=", DATA_BYTES, "whole")
        program.mov(R3, DATA_BYTES)
        program.label("whole")
        program.alu("+", R3, RECORD.size)
        program.map(R1, ring)
        self._frame(R2, _TIME)
        program.mov(R4, 0)
        program.call(_RINGBUF_OUTPUT)

    def _device(self, into: int, name_into: int, done: str) -> None:
        """Tells the device at R8, unless there is none; sets the label `done` after it."""
        where = self.where
        self.program.jump_if(R8, "==", 0, done)
        self._read(into + 4, 4, R8, where.device_index)
        self._read(name_into, 16, R8, where.device_name)
        self._follow(R8, R8, where.device_netns)
        self._read(into, 4, R8, where.netns_inode)
        self.program.label(done)

    def _addresses(self) -> tuple[int, int]:
        """Where on the frame a packet of the probe's family has its source and its target."""
        return _IP + SOURCE[self.version], _IP + TARGET[self.version]

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

    def _within(self, size: int) -> None:
        """Nothing to see here unless the packet has `size` bytes from the cursor on."""
        self.program.mov(R1, R8)
        self.program.alu("+", R1, size)
        self.program.jump_if(R1, ">", R9, "out")

    def _follow(self, target: Reg, base: Reg, offset: int, size: int = 8) -> None:
        """`target` = what the kernel has at `base` + `offset`, 0 where that can't be read."""
        self._read(_SCRATCH, size, base, offset)
        self.program.load(size, target, R10, _SCRATCH)

    def _read(self, into: int, size: int, base: Reg, offset: int = 0) -> None:
        """Onto the frame, from the kernel's memory; zeros where it can't be read."""
        self.program.mov(R3, base)
        if offset:
            self.program.alu("+", R3, offset)
        self._frame(R1, into)
        self.program.mov(R2, size)
        self.program.call(_PROBE_READ_KERNEL)

    def _frame(self, target: Reg, at: int) -> None:
        self.program.mov(target, R10)
        self.program.alu("+", target, at)


def _network(value: int) -> int:
    """Two bytes in network order, as a little-endian machine loads them."""
    return int.from_bytes(value.to_bytes(2, "big"), "little")
