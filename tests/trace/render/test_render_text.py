"""The text face: what stands where, what fits, and that nothing gets at the terminal."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podwire.trace.model import Trace
from podwire.trace.render.ink import cells
from podwire.trace.render.text import render_text

from .samples import SAMPLES, across, mixed_rounds, no_route, outside, three_rounds
from .strategies import traces

_SGR = re.compile(r"\x1b\[[0-9;]+m")

ACROSS = """\
pod default/pod1 10.244.1.2 on node1 → pod default/pod2 10.244.2.2 on node2
ICMP echo, 2026-11-21T03:37:33.783Z

Request                      +µs  bytes  TTL  ICMP echo request id 7 seq 1  DF
┌ pod:default/pod1 on node1
│   1 out eth0                       98   64  10.244.1.2 → 10.244.2.2
│       MACs   0a:58:0a:f4:01:02 → 0a:58:0a:f4:01:01
│       route  10.244.0.0/16 via 10.244.1.1 dev eth0   because Pod/default/pod1 has 10.244.1.2
│       neigh  10.244.1.1 lladdr 0a:58:0a:f4:01:01 REACHABLE dev eth0
│       pair   veth95dcb0817dc on node1   because Pod/default/pod1 has 10.244.1.2
├ node1
│   2 in  veth95dcb0817dc   +1.5     98   64  10.244.1.2 → 10.244.2.2
│       bridge port of cni0; 0a:58:0a:f4:01:01 is the bridge's own MAC
│   3 in  cni0              +0.9     98   64  10.244.1.2 → 10.244.2.2
│       route  10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink
│              because Node/node2 leases 10.244.2.0/24
│       neigh  10.244.2.0 lladdr 6e:3d:4e:35:ad:0b dev flannel.1 PERMANENT
│              because Node/node2 leases 10.244.2.0/24
│   4 out flannel.1         +3.4     98   63  10.244.1.2 → 10.244.2.2
│     Δ TTL 64 → 63, MACs 2a:2a:0c:09:80:04 → 6e:3d:4e:35:ad:0b
│       fdb    6e:3d:4e:35:ad:0b dst 172.18.0.12   because Node/node2 is reached at 172.18.0.12
│       tunnel flannel.1 encapsulates: VNI 1, UDP port 8472
│   5 out eth0              +6.2    148   64  172.18.0.11 → 172.18.0.12  VXLAN 1
│                                    98   63  └ 10.244.1.2 → 10.244.2.2
│     + in VXLAN (VNI 1), 98 → 148 bytes
┊ underlay, node1 to node2
├ node2
│   6 in  eth0             +14.1    148   64  172.18.0.11 → 172.18.0.12  VXLAN 1
│                                    98   63  └ 10.244.1.2 → 10.244.2.2
│       tunnel flannel.1 decapsulates: VNI 1, UDP port 8472
│   7 in  flannel.1         +2.8     98   63  10.244.1.2 → 10.244.2.2
│     − out of VXLAN, 148 → 98 bytes
│       route  10.244.2.0/24 dev cni0 proto kernel scope link src 10.244.2.1
│              because Node/node2 leases 10.244.2.0/24
│       neigh  10.244.2.2 lladdr 0a:58:0a:f4:02:02 dev cni0 REACHABLE
│   8 out cni0              +2.2     98   62  10.244.1.2 → 10.244.2.2
│     Δ TTL 63 → 62, MACs 0a:58:0a:f4:02:01 → 0a:58:0a:f4:02:02
│       bridge 0a:58:0a:f4:02:02 is at port veth0c3fa9d1e22
│              because Pod/default/pod2 has 10.244.2.2
│   9 out veth0c3fa9d1e22   +0.8     98   62  10.244.1.2 → 10.244.2.2
│       pair   eth0 of pod:default/pod2
├ pod:default/pod2 on node2
│  10 in  eth0              +1.1     98   62  10.244.1.2 → 10.244.2.2
│       local  10.244.2.2 is its own
└ ✓ arrived

Reply                        +µs  bytes  TTL  ICMP echo reply id 7 seq 1  DF
┌ 11    pod:default/pod2             98   64  eth0
├ 12–15 node2               +8.7    148   63  veth0c3fa9d1e22 → cni0 → flannel.1 → eth0
┊ underlay
├ 16–19 node1              +18.6     98   62  eth0 → flannel.1 → cni0 → veth95dcb0817dc
└ 20    pod:default/pod1    +0.9     98   62  eth0

✓ pod default/pod1 reaches pod default/pod2 and is answered, 71 µs there and back
"""


def test_the_demo_reads_like_this() -> None:
    assert render_text(across(), colour=False) == ACROSS


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_samples_stay_within_the_width(name: str, width: int) -> None:
    text = render_text(SAMPLES[name](), colour=False, width=width)
    assert max(len(line) for line in text.splitlines()) <= width


@pytest.mark.parametrize("name", SAMPLES)
def test_colour_only_adds(name: str) -> None:
    coloured = render_text(SAMPLES[name](), colour=True)
    assert _SGR.sub("", coloured) == render_text(SAMPLES[name](), colour=False)
    assert coloured != render_text(SAMPLES[name](), colour=False)


def test_a_failure_ends_with_cause_evidence_and_the_command_that_mends_it() -> None:
    text = render_text(no_route(), colour=False)
    assert "\n└ ✗ no route (IP_INNOROUTES)\n" in text
    assert text.endswith("""
┃ no route: node1, cni0
┃ node1 has no route to 10.244.2.2
┃ kernel  dropped it for IP_INNOROUTES
┃ seen    last seen at node1, cni0, on the way in
┃         the kernel freed it in ip_error (IP_INNOROUTES)
┃         ip route get 10.244.2.2 from 10.244.1.2 iif cni0: Network is unreachable
┃ wanted  because Node/node2 leases 10.244.2.0/24
┃ remedy  ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 112 onlink

✗ dropped at node1, cni0: node1 has no route to 10.244.2.2
""")


def test_a_command_is_a_line_without_its_comment() -> None:
    trace = no_route()
    (one,) = trace.rounds
    assert one.finding is not None
    finding = msgspec.structs.replace(one.finding, remedy=f"ip link set {'x' * 70} up  # on node1")
    rounds = (msgspec.structs.replace(one, finding=finding),)
    text = render_text(msgspec.structs.replace(trace, rounds=rounds), colour=False)
    assert f"┃ remedy  ip link set {'x' * 70} up\n┃         # on node1\n" in text


def test_the_reply_is_shown_in_full_where_that_is_asked_for() -> None:
    text = render_text(across(), colour=False, full=True)
    _, reply = text.split("\nReply ")
    assert reply.count("\n│  1") == 9
    assert "\n│  20 in  eth0" in reply


def test_an_address_translated_is_marked_both_ways() -> None:
    text = render_text(outside(), colour=False)
    assert "Δ source 10.244.1.2 → 172.18.0.11, TTL 64 → 63," in text
    assert "│     Δ target 172.18.0.11 → 10.244.1.2\n" in text
    assert "┊ on to 192.0.2.80, out of sight" in text


def test_several_rounds_are_summed_up_as_ping_does() -> None:
    text = render_text(three_rounds(), colour=False)
    assert (
        """
✓ probe 1    replied in 183.2 µs  (above)
✓ probe 2    replied in 124.0 µs
✓ probe 3    replied in 118.9 µs
3 probes, 3 answered, 0 % lost; round trip min/avg/max 0.119/0.142/0.183 ms
""".replace("  (above)", " (above)")
        in text
    )
    assert text.count("┌ pod:default/pod1 on node1") == 1


def test_the_failing_round_is_the_one_shown() -> None:
    text = render_text(mixed_rounds(), colour=False)
    assert "Request of probe 2 " in text
    assert "3 probes, 2 answered, 33 % lost" in text


def test_a_name_cannot_reach_the_terminal() -> None:
    evil = "eth\x1b[2J\u202e0\n✓ all is well"
    trace = across()
    one = trace.rounds[0]
    hop = msgspec.structs.replace(one.request.hops[0], interface=evil)
    request = msgspec.structs.replace(one.request, hops=(hop, *one.request.hops[1:]))
    rounds = (msgspec.structs.replace(one, request=request),)
    text = render_text(msgspec.structs.replace(trace, rounds=rounds), colour=False, width=200)
    assert "eth\\x1b[2J\\u2" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\n✓ all" not in text


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(traces(), st.sampled_from([60, 80, 100]))
def test_any_trace_fits_and_is_safe(trace: Trace, width: int) -> None:
    text = render_text(trace, colour=False, width=width)
    for line in text.split("\n"):
        assert cells(line) <= width
        assert line == line.rstrip()
        assert line.isprintable()
    assert _SGR.sub("", render_text(trace, colour=True, width=width)) == text
    text.encode()
