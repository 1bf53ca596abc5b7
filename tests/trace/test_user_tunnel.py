"""What the UDP tunnel counted from one moment to another."""

from __future__ import annotations

from podwire.model.tunnel import PeerStats, Stats
from podwire.trace.user_tunnel import TunnelCount, counted, meaning


def stats(received: int, *, handshake_s: float | None = None, **counts: int) -> Stats:
    peer = PeerStats(
        name="node2",
        sent_packets=9,
        sent_bytes=900,
        received_packets=received,
        received_bytes=100 * received,
        heard_s=None,
        handshake_s=handshake_s,
        path_mtu=None,
    )
    encryption = {"handshakes_sent": received, "not_authentic": 0, "malformed": 0, **counts}
    return Stats(drops={"malformed": 1, "multicast": 5}, encryption=encryption, peers=(peer,))


def test_what_encryption_drops_is_dropped_by_the_tunnel() -> None:
    now = stats(3, not_authentic=2, malformed=4)
    assert now.dropped == {"malformed": 5, "multicast": 5, "not_authentic": 2}
    assert meaning("not_authentic") == "the datagram fails authentication"


def test_only_what_was_counted_meanwhile_counts() -> None:
    before, now = stats(3), stats(5, not_authentic=1)
    assert counted(before, now) == TunnelCount(
        dropped={"not_authentic": 1}, received={"node2": 2}, unmet=("node2",)
    )
    assert counted(now, now) == TunnelCount(unmet=("node2",))
    assert counted(now, stats(5, handshake_s=1.0)) == TunnelCount()


def test_a_process_that_does_not_answer_counts_nothing() -> None:
    assert counted(stats(3), None).problem == "its process does not answer"
    assert counted(None, stats(3, handshake_s=1.0)) == TunnelCount()
