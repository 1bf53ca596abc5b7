"""Two ends of an encrypted tunnel: what they send each other, when, and what they refuse."""

from __future__ import annotations

import pytest

from podwire.errors import InputError
from podwire.tunnel.secure import OVERHEAD, SecurePeers
from tests.tunnel.ends import Ends


def _first(end: SecurePeers, target: str) -> bytes:
    """The handshake message that an end sends for want of a session."""
    assert end.seal(target, b"x") is None
    ((name, datagram),) = end.take_outbox()
    assert name == target
    return datagram


def test_a_packet_waits_for_the_handshake_that_it_starts() -> None:
    ends = Ends()
    ends.send("a", b"hello")
    ends.send("b", b"hello yourself")
    assert ends.received == {"a": [b"hello yourself"], "b": [b"hello"]}
    assert ends.a.counters["handshakes_done"] == ends.b.counters["handshakes_done"] == 1


def test_datagrams_are_told_from_bare_packets_by_their_first_byte() -> None:
    ends = Ends()
    first = _first(ends.a, "b")
    ends.deliver("b", first)
    ((_, second),) = ends.b.take_outbox()
    ends.deliver("a", second)
    ((_, waited),) = ends.a.take_outbox()
    assert [datagram[0] for datagram in (first, second, waited)] == [1, 2, 4]
    assert len(waited) == len(b"x") + OVERHEAD
    assert ends.b.open("a", bytes([0x45]) + bytes(40)) is None
    assert ends.b.counters["not_encrypted"] == 1


def test_an_end_that_asked_confirms_at_once_though_nothing_waits() -> None:
    """Otherwise the other end could not send before it has heard from this one."""
    ends = Ends()
    ends.send("a", b"1")
    ends.b = ends.end(2)  # restarted: its sessions are gone
    ends.b.set_peer("a", ends.a.public_key)
    ends.send("a", b"lost")
    ends.send("b", b"2")
    ends.send("a", b"3")
    assert ends.received == {"a": [b"2"], "b": [b"1", b"3"]}


def test_handshakes_that_cross_leave_both_ends_with_one_session() -> None:
    ends = Ends()
    to_b, to_a = _first(ends.a, "b"), _first(ends.b, "a")
    ends.deliver("b", to_b)
    ends.deliver("a", to_a)
    ends.settle()
    assert ends.received == {"a": [b"x"], "b": [b"x"]}
    ages = []
    for _ in range(2):
        ends.pass_time(
            100, meanwhile=lambda: (ends.send("a", b"y"), ends.send("b", b"z"))[0], step=5
        )
        ages.append((ends.a.session_age("b"), ends.b.session_age("a")))
    # One of them renews it when its time has come, and nothing was lost.
    assert ages == [(100, 100), (80, 80)]
    assert len(ends.received["a"]) == len(ends.received["b"]) == 41


def test_own_key_as_a_peers_is_refused() -> None:
    ends = Ends()
    with pytest.raises(InputError, match="two nodes share one key file"):
        ends.a.set_peer("c", ends.a.public_key)
    with pytest.raises(InputError, match="public key of c"):
        ends.a.set_peer("c", bytes(32))
