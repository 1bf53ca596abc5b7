"""The picture: well-formed, safe, the same each time, and nothing written over anything else."""

from __future__ import annotations

import re
from itertools import combinations
from typing import NamedTuple
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from podwire.trace.model import Trace
from podwire.trace.render.svg import render_svg
from podwire.trace.render.svg.canvas import FONTS, Canvas, width
from podwire.trace.render.svg.notes import shorter_rule, without_middle

from .samples import SAMPLES, across, no_route, not_in_use, outside, same_node, wrong_fdb
from .strategies import traces

_SVG = "{http://www.w3.org/2000/svg}"


class Written(NamedTuple):
    """A text and the box that it fills at most."""

    text: str
    left: float
    top: float
    right: float
    bottom: float


def parse(trace: Trace) -> ElementTree.Element:
    return ElementTree.fromstring(render_svg(trace))


def written(root: ElementTree.Element) -> list[Written]:
    found = []
    for one in root.iter(f"{_SVG}text"):
        font = (one.get("class") or "").split()[0]
        title = one.find(f"{_SVG}title")
        text = (one.text or "") + ((title.tail or "") if title is not None else "")
        wide, size = width(text, font), FONTS[font].size
        x, y = float(one.get("x") or 0), float(one.get("y") or 0)
        left = x - {"start": 0, "middle": wide / 2, "end": wide}[one.get("text-anchor", "start")]
        found.append(Written(text, left, y - 0.75 * size, left + wide, y + 0.2 * size))
    return found


def overlapping(texts: list[Written]) -> list[tuple[str, str]]:
    return [
        (a.text, b.text)
        for a, b in combinations(texts, 2)
        if min(a.right, b.right) - max(a.left, b.left) > 0.5
        and min(a.bottom, b.bottom) - max(a.top, b.top) > 0.5
    ]


def check(trace: Trace) -> list[Written]:
    """What holds for every picture; its texts."""
    root = parse(trace)
    texts = written(root)
    assert overlapping(texts) == []
    _, _, wide, high = (float(one) for one in (root.get("viewBox") or "").split())
    for one in texts:
        assert one.left >= -0.1, one
        assert one.right <= wide + 0.1, one
        assert one.top >= 0, one
        assert one.bottom <= high, one
    return texts


@pytest.mark.parametrize("name", SAMPLES)
def test_no_text_is_over_another_or_outside(name: str) -> None:
    check(SAMPLES[name]())


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(traces())
def test_any_trace_can_be_drawn(trace: Trace) -> None:
    check(trace)
    assert {one.tag.removeprefix(_SVG) for one in parse(trace).iter()} <= {
        "svg", "title", "desc", "style", "rect", "path", "circle", "text",
    }  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_it_is_the_same_each_time_and_needs_nothing_else(name: str) -> None:
    svg = render_svg(SAMPLES[name]())
    assert svg == render_svg(SAMPLES[name]())
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"url\(|@import|<script|<image|href", svg)


def test_it_can_be_read_to_those_who_do_not_see_it() -> None:
    root = parse(across())
    assert root.get("role") == "img"
    labels = (root.get("aria-labelledby") or "").split()
    described = {one.get("id"): one.text or "" for one in root if one.get("id")}
    assert list(described) == labels
    assert described["title"].startswith("pod default/pod1 10.244.1.2 on node1 → ")
    assert "1 pod:default/pod1 eth0 out, 2 node1 veth95dcb0817dc in" in described["desc"]


def test_dark_and_light_know_the_same_classes() -> None:
    svg = render_svg(across())
    light, _, dark = svg[svg.index("<style>") : svg.index("</style>")].partition("@media")
    assert "prefers-color-scheme:dark" in dark
    dark_classes = set(re.findall(r"^  \.podwire \.(\w+)\{", dark, re.MULTILINE))
    light_classes = set(re.findall(r"^\.podwire \.(\w+)\{[^}]*#", light, re.MULTILINE))
    assert dark_classes == light_classes
    used = {name for names in re.findall(r' class="([^"]+)"', svg) for name in names.split()}
    assert used <= {"podwire", "text", *re.findall(r"\.podwire \.(\w+)", light)}


def test_every_sighting_has_its_number() -> None:
    numbers = [one.text for one in check(across()) if one.text.isdigit()]
    assert set(numbers) >= {str(number) for number in range(1, 21)}


def test_the_packet_is_shown_in_each_form() -> None:
    texts = [one.text for one in check(across())]
    assert [text for text in texts if re.fullmatch(r"\d+ bytes", text)] == [
        "98 bytes",
        "148 bytes",
        "98 bytes",
    ]
    assert [text for text in texts if text.startswith("TTL") and "→" not in text] == [
        "TTL 64, DF",
        "TTL 64",
        "TTL 63, DF",
        "TTL 62, DF",
    ]
    assert texts.count("VXLAN") == 1


def test_on_one_node_the_bridge_is_between_the_two() -> None:
    texts = [one.text for one in check(same_node())]
    assert texts.count("node1") == 1
    assert "underlay" not in texts
    assert "0a:58:0a:f4:01:03 is at port vethfb26feedfcc" in texts


def test_outside_is_a_cloud_and_the_translation_is_told() -> None:
    texts = [one.text for one in check(outside())]
    assert "outside of the cluster" in texts
    assert "source 10.244.1.2 → 172.18.0.11" in texts


def test_a_rule_that_is_too_long_keeps_what_it_does() -> None:
    assert "nft inet podwire postrouting: … masquerade" in [one.text for one in check(outside())]
    svg = render_svg(outside())
    assert "224.0.0.0/4 masquerade fully-random</title>nft inet" in svg


@pytest.mark.parametrize(
    ("rule", "shorter"),
    [
        (
            "inet podwire postrouting: ip saddr @c ip daddr != @c masquerade fully-random",
            (
                "nft inet podwire postrouting: … masquerade fully-random",
                "nft inet podwire postrouting: … masquerade",
                "nft … masquerade",
            ),
        ),
        (
            "ip filter FORWARD: iifname cni0 counter jump KUBE",
            ("nft ip filter FORWARD: … jump KUBE", "nft … jump KUBE"),
        ),
        (
            'inet f c: tcp dport 80 log prefix "drop " accept comment "no drop"',
            ("nft inet f c: … accept", "nft … accept"),
        ),
        ("inet f c: drop", ("nft inet f c: drop", "nft … drop")),
        (
            "ip saddr 10.0.0.1 reject with tcp reset",
            ("nft … reject with tcp reset", "nft … reject"),
        ),
        ("inet f c: meta mark set 0x1", ()),
        ("", ()),
    ],
)
def test_a_rule_without_what_it_matches(rule: str, shorter: tuple[str, ...]) -> None:
    assert shorter_rule(rule) == shorter


@pytest.mark.parametrize(
    ("text", "shorter"),
    [
        ("neigh fe80::1 lladdr 0a:58:00:00:00:01", ("neigh … lladdr 0a:58:00:00:00:01",
                                                    "neigh … 0a:58:00:00:00:01")),
        ("source fd00::1 → fd00::2", ("source … → fd00::2", "source … fd00::2")),
        ("route fd00::/64", ()),
        ("", ()),
    ],
)  # fmt: skip
def test_what_came_of_it_is_kept(text: str, shorter: tuple[str, ...]) -> None:
    assert without_middle(text) == shorter


def test_the_first_shorter_text_that_fits_is_drawn() -> None:
    canvas = Canvas()
    used = canvas.text(
        0, 0, "x" * 50, "code", room=width("123456", "code"), shorter=("x" * 9, "<x>")
    )
    assert used == width("<x>", "code")
    assert f"<title>{'x' * 50}</title>&lt;x&gt;</text>" in canvas.document(1, 1, "", "")


def test_what_is_lost_before_it_leaves_is_not_on_the_underlay() -> None:
    trace = outside()
    (one,) = trace.rounds
    lost = msgspec.structs.replace(one.request, hops=one.request.hops[:3])
    (failed,) = no_route().rounds
    one = msgspec.structs.replace(failed, request=lost)
    texts = check(msgspec.structs.replace(trace, rounds=(one,)))
    cause = next(text for text in texts if text.text == "no route")
    bridge = next(text for text in texts if text.text == "cni0")
    nic = next(text for text in texts if text.text == "eth0" and text.top > bridge.bottom)
    assert bridge.bottom < cause.top < nic.top
    assert "flannel.1" not in [text.text for text in texts]


def test_a_drop_is_crossed_out_where_it_happened_and_explained() -> None:
    trace = no_route()
    texts = check(trace)
    crosses = [one for one in parse(trace).iter(f"{_SVG}path") if one.get("class") == "cross"]
    assert len(crosses) == 1
    cause = next(one for one in texts if one.text == "no route")
    bridge = next(one for one in texts if one.text == "cni0")
    tunnel = next(one for one in texts if one.text == "flannel.1")
    assert bridge.bottom < cause.top < tunnel.top
    assert any("ip route replace 10.244.2.0/24" in one.text for one in texts)


def test_a_third_node_stands_between() -> None:
    nodes = {
        one.text: one.left for one in check(wrong_fdb()) if one.text in ("node1", "node2", "node3")
    }
    assert nodes["node1"] < nodes["node3"] < nodes["node2"]


def test_a_name_cannot_become_markup() -> None:
    evil = "a</text><script>alert(1)</script>\x1b\u202e"
    trace = across()
    target = msgspec.structs.replace(trace.target, name=evil)
    svg = render_svg(msgspec.structs.replace(trace, target=target, verdict=evil))
    assert "<script" not in svg
    assert "\x1b" not in svg
    assert "\u202e" not in svg


def test_an_address_that_nobody_has_stands_where_it_would_be() -> None:
    trace = not_in_use()
    target = msgspec.structs.replace(trace.target, node="")
    texts = check(msgspec.structs.replace(trace, target=target))
    assert "outside of the cluster" not in [one.text for one in texts]
    nobody = next(one for one in texts if one.text == "nobody has")
    node2 = next(one for one in texts if one.text == "node2")
    assert abs(nobody.left - node2.left) < 60


def test_what_is_lost_between_a_port_and_its_bridge_has_room_for_the_cause() -> None:
    trace = no_route()
    (one,) = trace.rounds
    lost = msgspec.structs.replace(one.request, hops=one.request.hops[:2])
    texts = check(
        msgspec.structs.replace(trace, rounds=(msgspec.structs.replace(one, request=lost),))
    )
    port, cause, bridge = (
        next(text for text in texts if text.text == name)
        for name in ("veth95dcb0817dc", "no route", "cni0")
    )
    assert port.bottom < cause.top
    assert cause.bottom < bridge.top
