"""What of a packet decides its way, read out of decoded headers."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from podwire.model.state import parse_mac
from podwire.trace.decisions.flow import flow_of
from podwire.trace.model import Arp, Ethernet, Icmp, Ip, Payload, Tcp, Udp, Vxlan

FRAME = Ethernet("02:00:00:00:00:01", "02:00:00:00:00:02", 0x0800)
PING = Ip(
    version=4,
    source="10.244.1.2",
    target="10.244.2.2",
    ttl=63,
    protocol=1,
    length=84,
    dont_fragment=True,
    tos=0x10,
)
PLAIN = (FRAME, PING, Icmp(type=8, code=0, id=1, sequence=1), Payload(56))


def test_a_plain_packet() -> None:
    flow = flow_of(PLAIN)
    assert flow is not None
    assert (str(flow.src), str(flow.dst), flow.version) == ("10.244.1.2", "10.244.2.2", 4)
    assert (flow.ttl, flow.length, flow.dont_fragment) == (63, 84, True)
    assert (flow.source_mac, flow.target_mac) == (
        parse_mac("02:00:00:00:00:01"),
        parse_mac("02:00:00:00:00:02"),
    )
    question = flow.question(iif=7, mark=1)
    assert (question.dst, question.src) == (flow.dst.packed, flow.src.packed)
    assert (question.iif, question.mark, question.tos, question.protocol) == (7, 1, 0x10, 1)
    assert flow.inner is None


def test_ports_are_of_tcp_and_udp() -> None:
    ip = Ip(version=6, source="fd00::1", target="fd00::2", ttl=64, protocol=6, length=60)
    for upper in (Tcp(1000, 80, 1, 0, "S"), Udp(1000, 80, 20)):
        flow = flow_of((FRAME, ip, upper))
        assert flow is not None
        assert (flow.sport, flow.dport) == (1000, 80)
        assert flow.dont_fragment, "IPv6 is never fragmented on the way"
        back = flow.answer()
        assert (back.src, back.dst, back.sport, back.dport) == (flow.dst, flow.src, 80, 1000)
        assert back.target_mac == b""


def test_what_is_in_the_tunnel_is_the_inner_flow() -> None:
    outer = Ip(
        version=4, source="172.18.0.11", target="172.18.0.12", ttl=64, protocol=17, length=134
    )
    flow = flow_of((FRAME, outer, Udp(5000, 8472, 114), Vxlan(7), *PLAIN))
    assert flow is not None
    assert (str(flow.dst), flow.dport, flow.vni) == ("172.18.0.12", 8472, 7)
    assert flow.inner == flow_of(PLAIN)


def test_a_packet_without_link_header_or_source() -> None:
    unsent = Ip(version=4, source="", target="10.244.2.2", ttl=64, protocol=1, length=84)
    flow = flow_of((unsent,))
    assert flow is not None
    assert flow.src == ip_address(0)
    assert flow.question().src == b""
    assert flow.target_mac == b""


def test_what_is_no_ip_packet_has_no_flow() -> None:
    zero = "00:00:00:00:00:00"
    assert flow_of(()) is None
    assert flow_of((FRAME, Payload(4))) is None
    assert flow_of((FRAME, Arp(1, zero, "10.0.0.1", zero, "10.0.0.2"))) is None


def test_addresses_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="MAC"):
        flow_of((Ethernet("x", "y", 0x0800), PING))
