"""How packets and causes are called."""

from __future__ import annotations

import pytest

from podwire.trace.model import (
    Arp,
    Cause,
    Ethernet,
    Header,
    Icmp,
    Ip,
    Packet,
    Payload,
    Tcp,
    Udp,
    Vxlan,
)
from podwire.trace.render import words


def v4(protocol: int = 1, **more: int | bool) -> Ip:
    fields = {"ttl": 64, "length": 84, "dont_fragment": True, **more}
    return Ip(version=4, source="10.0.0.1", target="10.0.0.2", protocol=protocol, **fields)  # type: ignore[arg-type]


V6 = Ip(version=6, source="fd00::1", target="fd00::2", ttl=64, protocol=58, length=104)
ETHERNET = Ethernet("02:00:00:00:00:01", "02:00:00:00:00:02", 0x0800)
QUOTED = Icmp(type=3, code=4, mtu=1400, quoted=(v4(), Icmp(type=8, code=0, id=7, sequence=1)))


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ((ETHERNET, v4(), Icmp(type=8, code=0, id=7, sequence=1)), "ICMP echo request id 7 seq 1"),
        ((V6, Icmp(type=129, code=0, id=7, sequence=2)), "ICMPv6 echo reply id 7 seq 2"),
        ((v4(), QUOTED), "ICMP fragmentation needed MTU 1400 about 10.0.0.1 → 10.0.0.2"),
        ((V6, Icmp(type=2, code=0, mtu=1280)), "ICMPv6 packet too big MTU 1280"),
        ((V6, Icmp(type=1, code=4)), "ICMPv6 port unreachable"),
        (
            (V6, Icmp(type=135, code=0, target="fd00::9")),
            "ICMPv6 neighbour solicitation for fd00::9",
        ),
        ((v4(), Icmp(type=200, code=3)), "ICMP type 200"),
        ((v4(6), Tcp(40001, 80, 1, 0, "S")), "TCP S 40001→80"),
        ((v4(17), Udp(40001, 53, 64)), "UDP 40001→53"),
        ((v4(17), Udp(40001, 8472, 114), Vxlan(1), ETHERNET, v4()), "VXLAN 1"),
        ((ETHERNET, Arp(1, "a", "10.0.0.1", "b", "10.0.0.2")), "ARP who has 10.0.0.2?"),
        ((ETHERNET, Arp(2, "aa", "10.0.0.1", "b", "10.0.0.2")), "ARP 10.0.0.1 is at aa"),
        ((v4(offset=1480), Payload(100)), "ICMP fragment at 1480"),
        ((v4(132), Payload(100)), "protocol 132"),
        ((ETHERNET, Payload(46)), ""),
    ],
)
def test_a_packet_in_a_few_words(headers: tuple[Header, ...], said: str) -> None:
    assert words.summary(headers) == said


def test_every_cause_has_words() -> None:
    said = {words.cause_words(cause) for cause in Cause}
    assert len(said) == len(Cause)
    assert not [text for text in said if "-" in text and text != "reverse-path filter"]


def test_the_size_inside_is_that_of_the_inner_packet() -> None:
    inner = (ETHERNET, v4(), Icmp(type=8, code=0))
    packet = Packet(148, (ETHERNET, v4(17), Udp(1, 8472, 114), Vxlan(1), *inner))
    assert words.inner_size(packet) == 98
    assert words.outer(packet) == packet.headers[:4]
    assert words.inner_size(Packet(98, inner)) == 98
    assert words.outer(Packet(98, inner)) == ()


@pytest.mark.parametrize(
    ("us", "said"),
    [(71.44, "71.4 µs"), (999.9, "999.9 µs"), (8213.0, "8.21 ms"), (1.2e6, "1.20 s")],
)
def test_durations(us: float, said: str) -> None:
    assert words.duration(us) == said
