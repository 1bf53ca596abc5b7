"""The auto transport under traffic: it moves to UDP where VXLAN does not get through, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from podwire.lab import Lab

from .commands import Command
from .steady_ping import INTERVAL_S, SteadyPing
from .stream import Stream
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Of the agents' probes, in seconds; a machine that stalls adds its part to what is lost.
PROBE_INTERVAL_S, STALL_S = 1.0, 2.0


def path(lab: Lab, node: str) -> Any:
    """A node's way to its only peer, as its status has it."""
    told = Command(lab.name).here("status", "--node", node, "-o", "json").stdout
    (found,) = json.loads(told)["nodes"][0]["peers"][0]["paths"]
    return found


def test_traffic_moves_to_udp_and_back(make_lab: Callable[..., Lab]) -> None:
    # Routed pods leave their node no other address of its subnet than its tunnels'.
    lab = make_lab(2, transport="auto", wiring="routed", underlay="routed")
    here, there = lab.run("here", node="node1"), lab.run("there", node="node2")
    lab.wait_ready()

    def both_use(kind: str) -> bool:
        return all(path(lab, node)["kind"] == kind for node in ("node1", "node2"))

    for node in ("node1", "node2"):
        until(lambda node=node: path(lab, node)["rtt_us"], "VXLAN is probed")  # type: ignore[misc]
    # A node that was late to start may have been given up for a while.
    until(lambda: both_use("vxlan"), "VXLAN is used")

    # A pod's, and the node's own.
    pings = [SteadyPing(here, there), SteadyPing(lab.node("node1"), there)]
    with pings[0], pings[1], Stream(here, there) as stream:

        def traffic_goes_on() -> None:
            answered, intervals = [len(one.answered) for one in pings], stream.intervals
            for one, before in zip(pings, answered, strict=True):
                until(lambda: len(one.answered) > before + 20, "pings are answered")  # noqa: B023
            until(lambda: stream.intervals > intervals + 2, "data flows")

        lab.partition("node1", "node2", protocol="udp", port=8472)
        until(lambda: both_use("udp"), "UDP is used")
        traffic_goes_on()
        told = Command(lab.name).ok("status")
        assert re.search(r"node2 .* udp .* VXLAN to node2 not answered since \d\d:\d\d:\d\d", told)
        assert path(lab, "node1")["blocked"]
        moved = [one.answered[-1] for one in pings]
        lab.heal()
        until(lambda: both_use("vxlan"), "VXLAN is used again")
        traffic_goes_on()
        assert "VXLAN to node2 is answered" in Command(lab.name).ok("status")
    for one, last in zip(pings, moved, strict=True):
        gaps = [(number, after - number) for number, after in pairwise(sorted(one.answered))]
        assert max(gap for _, gap in gaps) * INTERVAL_S < PROBE_INTERVAL_S + STALL_S
        assert max(gap for number, gap in gaps if number > last) * INTERVAL_S < STALL_S
