"""Neighbours that are asked on one link answer on it, whatever the routes are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from ipaddress import ip_address

import pytest

from podwire.kernel.solicit import Answer, Question, Solicitor
from podwire.model.state import parse_mac
from tests.conftest import Namespace
from tests.e2e.waiting import DEADLINE_S, until

pytestmark = pytest.mark.root

OWN_MAC, MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
OWN = {4: "10.244.1.0", 6: "fd00:10:244:1::"}
THEIRS = {4: "10.244.2.0", 6: "fd00:10:244:2::"}


def joined(here: Namespace, there: Namespace) -> None:
    """A link between the two; their routes to each other lead elsewhere."""
    here.run(f"ip link add near address {OWN_MAC} type veth peer name far netns {there.name}")
    there.run(f"ip link set far address {MAC}")
    ends = ((here, "near", OWN, THEIRS), (there, "far", THEIRS, OWN))
    for one, dev, own, theirs in ends:
        one.run("ip link add elsewhere type bridge; ip link set elsewhere up")
        one.run(f"sysctl -qw net.ipv4.conf.{dev}.rp_filter=2; ip link set {dev} up")
        one.run(
            f"ip address add {own[4]}/32 dev {dev}; ip address add {own[6]}/128 dev {dev} nodad"
        )
        one.run(f"ip route add {theirs[4]} dev elsewhere; ip route add {theirs[6]} dev elsewhere")


def question(version: int) -> Question:
    ip, own_ip = (ip_address(one[version]).packed for one in (THEIRS, OWN))
    return Question(ip, parse_mac(MAC), own_ip, parse_mac(OWN_MAC))


@pytest.mark.parametrize("version", [4, 6])
def test_a_neighbour_answers_on_the_link_that_it_is_asked_on(
    inside: Namespace, make_namespace: Callable[[], Namespace], version: int
) -> None:
    there = make_namespace()
    joined(inside, there)
    asked = question(version)
    with closing(Solicitor(version, "near")) as solicitor:
        found: list[Answer] = []

        def answers(number: int) -> bool:
            solicitor.ask(asked, number)
            found.extend(solicitor.answers())
            return number in {one.number for one in found}

        until(lambda: answers(7), "it answers")
        there.run("ip link set far down")
        list(solicitor.answers())
        solicitor.ask(asked, 8)
        there.run(f"ip link set far up; ip address replace {THEIRS[version]} dev far nodad")
        solicitor.ask(asked._replace(ip=asked.own_ip), 9)
        until(lambda: answers(10), "it answers again")
        assert {one.number for one in found} == {7, 10}
        assert {one.ip for one in found} == {asked.ip}
        assert all(one.rtt_s < DEADLINE_S for one in found)
        assert solicitor.is_current
        inside.run("ip link del near; ip link add near type bridge")
        assert not solicitor.is_current
        # Until whoever asks has looked.
        solicitor.ask(asked, 11)
        assert list(solicitor.answers()) == []


def test_a_link_that_is_not_there_can_not_be_asked_on(inside: Namespace) -> None:
    for version in (4, 6):
        with pytest.raises(OSError, match=r"No such device|no interface"):
            Solicitor(version, "none")
