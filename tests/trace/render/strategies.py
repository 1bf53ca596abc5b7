"""Traces of any shape, with names that nobody sane would give."""

from __future__ import annotations

from hypothesis import strategies as st

from podwire.model.probe import Probe
from podwire.model.state import Why
from podwire.trace.model import (
    Arp,
    Cause,
    Change,
    Decision,
    Endpoint,
    Ethernet,
    Finding,
    Header,
    Hop,
    Icmp,
    Interface,
    Ip,
    Outcome,
    Packet,
    Path,
    Payload,
    Place,
    Problem,
    Round,
    Tcp,
    Trace,
    Udp,
    Vxlan,
)

#: Words, escape sequences, writing that turns around, wide and combining characters, markup.
texts = st.one_of(
    st.sampled_from(
        [
            "",
            "eth0",
            "default/pod1",
            "10.244.1.2",
            "fd00:1234:5678:9abc:def0:1234:5678:9abc",
            "\x1b[31mred\x1b]0;title\x07",
            "a\nb\tc\r",
            "\u202egnp.exe",
            "e\u0301\u0301\u0301",
            "網路介面卡",
            "</text><script>alert(1)</script>",
            "&<>\"'",
            "x" * 300,
            "a long row of words " * 20,
        ]
    ),
    st.text(max_size=20),
)
_numbers = st.integers(0, 65535)
_ips = st.sampled_from(["10.244.1.2", "172.18.0.12", "fd00:1234:5678:9abc:def0:1234:5678:9abc"])

_whys = st.none() | st.builds(Why, texts, texts)
_problems = st.none() | st.builds(
    Problem, cause=st.sampled_from(Cause), text=texts, remedy=texts, why=_whys
)
_decisions = st.builds(Decision, kind=texts, text=texts, why=_whys, problem=_problems)
_kinds = ["encapsulated", "decapsulated", "ttl", "mac", "source-nat", "target-nat", "fragmented"]
_changes = st.builds(Change, st.sampled_from(_kinds), texts)
_ip_headers = st.builds(
    Ip,
    version=st.sampled_from([4, 6]),
    source=_ips,
    target=_ips,
    ttl=st.integers(0, 255),
    protocol=st.integers(0, 255),
    length=_numbers,
    dont_fragment=st.booleans(),
    more_fragments=st.booleans(),
    offset=st.sampled_from([0, 1480]),
)
_headers: st.SearchStrategy[Header] = st.one_of(
    st.builds(Ethernet, texts, texts, _numbers),
    _ip_headers,
    st.builds(Udp, _numbers, _numbers, _numbers),
    st.builds(Tcp, _numbers, _numbers, _numbers, _numbers, st.sampled_from(["S", "S.", ""])),
    st.builds(
        Icmp,
        type=st.integers(0, 255),
        code=st.integers(0, 15),
        id=st.none() | _numbers,
        mtu=st.none() | _numbers,
        quoted=st.just(()) | st.tuples(_ip_headers),
    ),
    st.builds(Arp, st.integers(0, 3), texts, _ips, texts, _ips),
    st.builds(Vxlan, _numbers),
    st.builds(Payload, _numbers),
)
_packets = st.builds(Packet, _numbers, st.lists(_headers, max_size=8).map(tuple))
_interface_kinds = st.sampled_from(["veth", "bridge", "vxlan", "loopback", "tun", "device"])


def _interfaces() -> st.SearchStrategy[Interface]:
    return st.builds(
        Interface,
        index=st.integers(1, 9),
        name=texts,
        kind=_interface_kinds,
        master=st.integers(0, 9),
        peer=st.integers(0, 9),
        addresses=st.lists(_ips, max_size=2).map(tuple),
        underlay=st.booleans(),
        vni=st.none() | _numbers,
    )


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Any trace whose hops name places that it has."""
    nodes = draw(st.lists(texts.filter(bool), min_size=1, max_size=3))
    places = draw(
        st.lists(
            st.builds(
                Place,
                node=st.sampled_from(nodes),
                pod=st.just("") | texts,
                clock=st.sampled_from("ab"),
                interfaces=st.lists(_interfaces(), max_size=3).map(tuple),
            ),
            min_size=1,
            max_size=4,
        )
    )
    names = [one.name for place in places for one in place.interfaces] or ["eth0"]
    number = 0

    def hop() -> Hop:
        nonlocal number
        number += 1
        return Hop(
            number=number,
            place=draw(st.integers(0, len(places) - 1)),
            interface=draw(st.sampled_from(names) | texts),
            interface_kind=draw(_interface_kinds),
            direction=draw(st.sampled_from(("in", "out"))),
            time_ns=number,
            since_us=draw(st.none() | st.floats(-1e3, 1e9)),
            packet=draw(_packets),
            changes=draw(st.lists(_changes, max_size=2).map(tuple)),
            decisions=draw(st.lists(_decisions, max_size=2).map(tuple)),
        )

    def path() -> Path:
        return Path(tuple(hop() for _ in range(draw(st.integers(0, 6)))), draw(st.booleans()))

    findings = st.builds(
        Finding,
        cause=st.sampled_from(Cause),
        where=texts,
        text=texts,
        remedy=texts,
        kernel_reason=st.none() | texts,
        evidence=st.lists(texts, max_size=2).map(tuple),
        why=_whys,
    )
    rounds = tuple(
        Round(
            number=at + 1,
            request=path(),
            reply=path() if draw(st.booleans()) else None,
            rtt_us=draw(st.none() | st.floats(0, 1e9)),
            outcome=draw(st.sampled_from(Outcome)),
            finding=draw(st.none() | findings),
        )
        for at in range(draw(st.integers(0, 2)))
    )
    kinds, everywhere = ["pod", "node", "address"], [*nodes, ""]
    source, target = (
        st.builds(
            Endpoint,
            kind=st.sampled_from(kinds[:kinds_of]),
            ip=_ips,
            name=texts,
            node=st.sampled_from(everywhere[: len(nodes) + (kinds_of == 3)]),
        )
        for kinds_of in (2, 3)
    )
    return Trace(
        started="2026-11-21T03:37:33Z",
        source=draw(source),
        target=draw(target),
        probe=Probe(target="10.244.2.2", protocol=draw(st.sampled_from(("icmp", "tcp")))),
        places=tuple(places),
        rounds=rounds,
        verdict=draw(texts),
        notes=draw(st.lists(texts, max_size=1).map(tuple)),
    )
