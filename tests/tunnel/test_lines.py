"""Which peers have a socket of their own."""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest

from podwire.model.tunnel import TunnelPeer
from podwire.tunnel import lines
from podwire.tunnel.lines import Lines
from podwire.tunnel.readers import Readers
from podwire.tunnel.sockets import Underlay
from podwire.tunnel.table import Peer, Table
from tests.conftest import Namespace
from tests.tunnel.network import inside

pytestmark = pytest.mark.root


class Some:
    """Three peers, of which two can have a line."""

    def __init__(self, underlay: Underlay) -> None:
        self.underlay, self.table = underlay, Table()
        self.epoll = select.epoll()
        self.readers = Readers(self.epoll, lambda _ready, _drain: False)
        self.peers = [
            Peer(TunnelPeer(name=f"node{n}", subnets=(), address=f"127.0.0.{n}")) for n in (2, 3, 4)
        ]
        self.table.replace(self.peers)
        self.lines = Lines(underlay, self.table, self.readers, lambda _: bool)

    def hear(self, peer: Peer, batches: int) -> None:
        for _ in range(batches):
            peer.received_packets += 1
            if peer.place not in self.underlay.lines:
                self.lines.earn(peer.place, 1)

    def have_one(self) -> list[Peer]:
        lines = {line.fd for line in self.underlay.lines.values()}
        assert lines == self.readers.pumps.keys() - {self.epoll.fileno()}
        return [peer for peer in self.peers if peer.place in self.underlay.lines]


@pytest.fixture
def some(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Some]:
    monkeypatch.setattr(lines, "MOST", 2)
    namespace.run("ip link set lo up")
    with inside(namespace):
        underlay = Underlay("127.0.0.1", 8285)
        yield Some(underlay)
        underlay.close()


def test_a_line_is_earned_and_goes_with_its_peer(some: Some) -> None:
    one, *_ = some.peers
    some.hear(one, lines.EARNED - 1)
    assert some.have_one() == []
    some.hear(one, 1)
    assert some.have_one() == [one]
    some.table.remove_peer(one.name)
    some.lines.look_again()
    assert some.have_one() == []


def test_where_none_is_left_a_silent_peer_loses_its_own(some: Some) -> None:
    one, two, three = some.peers
    for peer in (one, two, three):
        some.hear(peer, lines.EARNED)
    # Who is silent is only known from the second look on.
    assert some.have_one() == [one, two]
    some.hear(one, 1)
    some.hear(three, lines.EARNED)
    assert some.have_one() == [one, three]
    some.hear(one, 1)
    some.hear(three, 1)
    some.hear(two, lines.EARNED)
    some.hear(one, 1)
    some.hear(three, 1)
    some.hear(two, lines.EARNED)
    assert some.have_one() == [one, three]
