"""The program that guards pods' ports: eBPF, one for all ports of a node that are wired alike.

What lives here: its instructions, and the form of what it knows of each port. What does not:
loading it, and hanging it to a device (`guards`); who may send what (`podwire.plan.spoofing`).

What a port lets pass it looks up by the device's index. (As immediates of a program of its own it
would be found a little faster; but the kernel takes half a millisecond to check one, which each
pod's start would wait for.) A port that it knows nothing of lets nothing pass.

It runs for every frame that a pod sends, so the usual one comes first: IPv4, then TCP and UDP over
IPv6, from an address that is the pod's own, read where the packet lies. Everything else goes the
slow way, on which headers are copied to the stack, wherever in the packet they are:

    frames     on a bridge: the sender's MAC and address, those inside ARP, the target of neighbour
               advertisements. What is neither ARP nor IP is dropped, and what has a VLAN tag: the
               tag would hide an address.
    packets    of a routed pod: the source address. ARP and the like reach nobody but the node.

A router's messages (router advertisements, redirects) are dropped behind up to four extension
headers, too; what hides its protocol, behind more or in a fragment that ends before it, is dropped
as one of them (RFC 7113). Fragments but the first can't be told; receivers of neighbour discovery
don't put them together (RFC 6980).

R6 is the packet and R7 what the port lets pass; on the slow way R8 is the upper protocol, R9 where
its header begins.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from podwire.kernel.ebpf import Program, Reg
from podwire.model.state import IPAddress

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Reg

#: What is counted, in the order of the values in the map: by the names of nft's counters.
KINDS = ("spoofed_ip", "spoofed_arp", "spoofed_nd", "spoofed_ra", "other_frames")
COUNTERS_BYTES = 8 * len(KINDS)
LICENCE = "GPL"

# TC_ACT_UNSPEC (whoever comes next decides) and TC_ACT_SHOT (include/uapi/linux/pkt_cls.h)
PASS, DROP = -1, 2

_MAP_LOOKUP_ELEM, _SKB_LOAD_BYTES = 1, 26  # enum bpf_func_id
# struct __sk_buff (include/uapi/linux/bpf.h). A tag has been taken out of the frame by then.
_VLAN_PRESENT, _IFINDEX, _DATA, _DATA_END = 20, 40, 76, 80

# Types of frames, as a little-endian machine reads them.
_IPV4, _IPV6, _ARP = 0x0008, 0xDD86, 0x0608
_VLAN_TAGS = (0x0081, 0xA888)
# Where things are in a frame.
_SENDER, _TYPE, _IP = 6, 12, 14
_SOURCE4, _NEXT6, _SOURCE6 = _IP + 12, _IP + 6, _IP + 8
_IP4_END, _IP6_END = _IP + 20, _IP + 40

_TCP, _UDP, _ICMP6 = 6, 17, 58
_FRAGMENT = 44
#: With hop-by-hop options, routing and destination options, which have one form.
_EXTENSIONS = (0, 43, _FRAGMENT, 60)
_MOST_HEADERS = 4
_ROUTER_ADVERTISEMENT, _ADVERTISEMENT, _REDIRECT = 134, 136, 137

# On the stack: where loads of several bytes are aligned, as the verifier wants them.
_FRAME = -14  # its header; the sender's MAC and the type are its last eight bytes
_FOUR = -24  # source and target of IPv4
_ARP_HEAD = -42  # until the sender's address; its MAC is at -34, its address at -28
_SIX = -56  # the header of IPv6
_UPPER = -64  # what comes after it, or the type of ICMPv6
_TARGET = -80  # of a neighbour advertisement


#: What a port lets pass: the sender's MAC with the type of IPv4, IPv6 and ARP frames behind it, as
#: they stand in a frame; the MAC in two parts, of two and of four bytes; addresses.
_VALUE = struct.Struct("<8s8s8s2s2x4s32s128s16s")
VALUE_BYTES = _VALUE.size
_MACS, _MAC_PARTS, _FOURS, _SIXES = {_IPV4: 0, _IPV6: 8, _ARP: 16}, (24, 28), 32, 64
#: So many addresses of a family; and the link-local one.
MOST = 8


def value(*, frames: bool, mac: bytes, ips: Sequence[IPAddress], on_link: IPAddress) -> bytes:
    """What a pod with this MAC and these addresses may send with; `on_link` is its link-local one.

    What is left over is filled with what passes anyhow, or comes from nobody. Raises ValueError
    where they are too many.
    """
    four = [ip.packed for ip in ips if ip.version == 4]
    six = [ip.packed for ip in ips if ip.version == 6]
    if max(len(four), len(six)) > MOST:
        raise ValueError(f"a pod with more than {MOST} addresses of a family")
    nobody = four[:1] or [bytes(4) if frames else b"\xff" * 4]
    return _VALUE.pack(
        *(mac + kind.to_bytes(2, "little") for kind in _MACS),
        mac[:2],
        mac[2:],
        b"".join(four + nobody * (MOST - len(four))),
        b"".join(six + [on_link.packed] * (MOST - len(six))),
        on_link.packed,
    )


def assemble(ports: int, counters: int, *, frames: bool) -> bytes:
    """The code. `ports` is the descriptor of a hash of values by a device's index, `counters` that
    of the array that drops are counted in."""
    return _Guard(ports, counters, frames).assemble()


class _Guard:
    def __init__(self, ports: int, counters: int, frames: bool) -> None:
        self._ports = ports
        self._counters = counters
        self._frames = frames
        self._program = Program()
        self._kinds: set[str] = set()
        self._labels = 0

    def assemble(self) -> bytes:
        self._usual()
        self._slow()
        self._ends()
        return self._program.assemble()

    # --- the usual packet ---------------------------------------------------------------------

    def _usual(self) -> None:
        p = self._program
        p.mov(R6, R1)
        p.load(4, R2, R1, _IFINDEX)
        p.store(4, R10, -4, R2)
        p.mov(R2, R10)
        p.alu("+", R2, -4)
        p.map(R1, self._ports)
        p.call(_MAP_LOOKUP_ELEM)
        p.jump_if(R0, "==", 0, self._dropped("spoofed_ip"))
        p.mov(R7, R0)
        p.load(4, R2, R6, _DATA)
        p.load(4, R3, R6, _DATA_END)
        if self._frames:
            p.load(4, R0, R6, _VLAN_PRESENT)
            p.jump_if(R0, "!=", 0, self._dropped("other_frames"))
        p.mov(R0, PASS)
        self._within(_IP4_END)
        self._compare_head(_IPV4, "not IPv4")
        p.load(4, R5, R2, _SOURCE4)
        self._if_one_of_four("pass")
        p.jump("slow")

        p.label("not IPv4")
        self._within(_IP6_END)
        self._compare_head(_IPV6, "slow")
        p.load(1, R4, R2, _NEXT6)
        p.jump_if(R4, "==", _TCP, "plain")
        p.jump_if(R4, "!=", _UDP, "slow")
        p.label("plain")
        p.load(8, R5, R2, _SOURCE6)
        p.load(8, R4, R2, _SOURCE6 + 8)
        self._if_one_of_six("pass")
        p.jump("slow")

        p.label("pass")
        p.exit()

    def _within(self, size: int) -> None:
        p = self._program
        p.mov(R4, R2)
        p.alu("+", R4, size)
        p.jump_if(R4, ">", R3, "slow")

    def _compare_head(self, kind: int, otherwise: str) -> None:
        """Whether the frame is of that type and, where frames are looked at, from the pod's MAC."""
        p = self._program
        if not self._frames:
            p.load(2, R5, R2, _TYPE)
            p.jump_if(R5, "!=", kind, otherwise)
            return
        p.load(8, R5, R2, _SENDER)
        p.load(8, R4, R7, _MACS[kind])
        p.jump_if(R5, "!=", R4, otherwise)

    def _if_one_of_four(self, then: str) -> None:
        """Jumps where the address in R5 is one of the pod's. R4 is lost."""
        for number in range(MOST):
            self._program.load(4, R4, R7, _FOURS + 4 * number)
            self._program.jump_if(R5, "==", R4, then)

    def _if_one_of_six(self, then: str) -> None:
        """Jumps where an address, its halves in R5 and R4, is one of the pod's. R3 is lost."""
        p = self._program
        for at in range(_SIXES, VALUE_BYTES, 16):
            p.load(8, R3, R7, at)
            p.jump_if(R5, "!=", R3, f"{self._labels}")
            p.load(8, R3, R7, at + 8)
            p.jump_if(R4, "==", R3, then)
            p.label(f"{self._labels}")
            self._labels += 1

    # --- all others ---------------------------------------------------------------------------

    def _slow(self) -> None:
        p = self._program
        nothing = self._dropped("other_frames") if self._frames else "through"
        p.label("slow")
        self._copy(0, _FRAME, _IP, nothing)
        p.load(2, R5, R10, _FRAME + _TYPE)
        p.jump_if(R5, "==", _IPV4, "IPv4")
        p.jump_if(R5, "==", _IPV6, "IPv6")
        if self._frames:
            p.jump_if(R5, "!=", _ARP, self._dropped("other_frames"))
            self._arp()
        else:
            # The stack takes a second tag away when the first one says no more than a priority.
            for tag in _VLAN_TAGS:
                p.jump_if(R5, "==", tag, self._dropped("other_frames"))
            p.jump("through")
        self._ipv4()
        self._ipv6()

    def _arp(self) -> None:
        p, drop = self._program, self._dropped("spoofed_arp")
        self._copy(_IP, _ARP_HEAD, 18, drop)
        self._check_mac(_ARP, drop)
        p.load(2, R5, R10, _ARP_HEAD + 8)
        p.load(4, R4, R7, _MAC_PARTS[0])
        p.jump_if(R5, "!=", R4, drop)
        p.load(4, R5, R10, _ARP_HEAD + 10)
        p.load(4, R4, R7, _MAC_PARTS[1])
        p.jump_if(R5, "!=", R4, drop)
        p.load(4, R5, R10, _ARP_HEAD + 14)
        # Who asks whether an address is free has none.
        p.jump_if(R5, "==", 0, "through")
        self._if_one_of_four("through")
        p.jump(drop)

    def _ipv4(self) -> None:
        p, drop = self._program, self._dropped("spoofed_ip")
        p.label("IPv4")
        self._copy(_SOURCE4, _FOUR, 8, drop)
        if self._frames:
            self._check_mac(_IPV4, drop)
        p.load(4, R5, R10, _FOUR)
        self._if_one_of_four("through")
        if self._frames:
            p.jump_if(R5, "==", 0, "through")
        else:
            # To everybody on its link, who has no address yet may send.
            p.jump_if(R5, "!=", 0, drop)
            p.load(4, R5, R10, _FOUR + 4)
            p.jump_if32(R5, "==", -1, "through")
            p.alu("&", R5, 0xFFFFFF)
            p.jump_if(R5, "==", _little(bytes([224, 0, 0])), "through")
        p.jump(drop)

    def _ipv6(self) -> None:
        p, drop = self._program, self._dropped("spoofed_ip")
        p.label("IPv6")
        self._copy(_IP, _SIX, 40, drop)
        self._walk()
        p.label("upper")
        if self._frames:
            self._check_mac(_IPV6, drop)
        self._load_source()
        self._if_one_of_six("through")
        p.alu("|", R5, R4)
        p.jump_if(R5, "!=", 0, drop)
        # From no address at all, nothing but ICMPv6 is sent.
        p.jump_if(R8, "==", _ICMP6, "through")
        p.jump(drop)

    def _walk(self) -> None:
        """Through extension headers, to a router's messages and neighbour advertisements."""
        p, hidden = self._program, self._dropped("spoofed_ra")
        p.load(1, R8, R10, _SIX + _NEXT6 - _IP)
        p.mov(R9, _IP6_END)
        for number in range(_MOST_HEADERS):
            self._to_upper()
            self._copy(R9, _UPPER, 4, hidden)
            p.load(1, R4, R10, _UPPER)
            p.load(1, R5, R10, _UPPER + 1)
            p.jump_if(R8, "!=", _FRAGMENT, f"header {number}")
            p.mov(R8, R4)
            p.load(2, R5, R10, _UPPER + 2)
            p.alu("&", R5, _little(bytes([0xFF, 0xF8])))
            p.jump_if(R5, "!=", 0, "upper")
            p.label(f"header {number}")
            p.mov(R8, R4)
            p.alu("+", R5, 1)
            p.alu("<<", R5, 3)
            p.alu("+", R9, R5)
        self._to_upper()
        p.jump(hidden)

        p.label("ICMPv6")
        self._copy(R9, _UPPER, 1, hidden)
        p.load(1, R5, R10, _UPPER)
        for kind in (_ROUTER_ADVERTISEMENT, _REDIRECT):
            p.jump_if(R5, "==", kind, hidden)
        if not self._frames:
            p.jump("upper")
            return
        p.jump_if(R5, "!=", _ADVERTISEMENT, "upper")
        p.alu("+", R9, 8)
        self._copy(R9, _TARGET, 16, "upper")
        p.load(8, R5, R10, _TARGET)
        p.load(8, R4, R10, _TARGET + 8)
        self._if_one_of_six("upper")
        p.jump(self._dropped("spoofed_nd"))

    def _to_upper(self) -> None:
        """Leaves, unless an extension header comes next."""
        p = self._program
        p.jump_if(R8, "==", _ICMP6, "ICMPv6")
        p.jump_if(R8, ">", max(_EXTENSIONS), "upper")
        p.load64(R5, sum(1 << kind for kind in _EXTENSIONS))
        p.alu(">>", R5, R8)
        p.alu("&", R5, 1)
        p.jump_if(R5, "==", 0, "upper")

    def _load_source(self) -> None:
        self._program.load(8, R5, R10, _SIX + 8)
        self._program.load(8, R4, R10, _SIX + 16)

    def _check_mac(self, kind: int, otherwise: str) -> None:
        self._program.load(8, R5, R10, _FRAME + _SENDER)
        self._program.load(8, R4, R7, _MACS[kind])
        self._program.jump_if(R5, "!=", R4, otherwise)

    def _copy(self, source: Reg | int, target: int, size: int, otherwise: str) -> None:
        """`size` bytes of the frame to the stack; `otherwise` where it ends before."""
        p = self._program
        p.mov(R1, R6)
        p.mov(R2, source)
        p.mov(R3, R10)
        p.alu("+", R3, target)
        p.mov(R4, size)
        p.call(_SKB_LOAD_BYTES)
        p.jump_if(R0, "!=", 0, otherwise)

    # --- ends ---------------------------------------------------------------------------------

    def _ends(self) -> None:
        p = self._program
        p.label("through")
        p.mov(R0, PASS)
        p.exit()
        for number, kind in enumerate(KINDS):
            if kind in self._kinds:
                p.label(kind)
                p.map_value(R1, self._counters, 8 * number)
                p.jump("count")
        p.label("count")
        p.mov(R2, 1)
        p.add_atomically(R1, 0, R2)
        p.mov(R0, DROP)
        p.exit()

    def _dropped(self, kind: str) -> str:
        """The label where that is counted."""
        self._kinds.add(kind)
        return kind


def _little(data: bytes) -> int:
    """As a little-endian machine reads them."""
    return int.from_bytes(data, "little")
