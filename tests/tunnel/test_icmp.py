"""ICMP errors: their bytes, and when there is none."""

from __future__ import annotations

from dataclasses import replace

from podwire.tunnel.icmp import Problem, error_about, is_multicast, stays_on_link
from tests.tunnel.packets import Packet, checksum

FOUR, SIX = Packet(payload=bytes(2000)), Packet(version=6, payload=bytes(2000))


def test_errors_quote_as_much_as_fits() -> None:
    four = error_about(FOUR.data(), Problem.TOO_BIG, 1400)
    assert four is not None and checksum(four) == 0
    assert four[:2] == b"\x03\x04" and four[4:8] == b"\0\0\x05\x78"
    assert four[8:] == FOUR.data()[: 576 - 28]
    six = error_about(SIX.data(), Problem.TOO_BIG, 1400)
    assert six is not None and six[:8] == b"\x02\0\0\0\0\0\x05\x78"
    assert six[8:] == SIX.data()[: 1280 - 48]


def test_types_and_codes() -> None:
    found = [
        (
            problem,
            [one[:2].hex() for one in (error_about(p.data(), problem) or b"" for p in (FOUR, SIX))],
        )
        for problem in (Problem.NO_ROUTE, Problem.TIME_EXCEEDED)
    ]
    assert found == [
        (Problem.NO_ROUTE, ["0300", "0100"]),
        (Problem.TIME_EXCEEDED, ["0b00", "0300"]),
    ]


def test_what_must_not_be_answered() -> None:
    icmp = bytearray(replace(FOUR, protocol=1).data())
    for kind, answered in ((8, True), (0, True), (3, False), (11, False), (5, False)):
        icmp[20] = kind
        assert (error_about(bytes(icmp), Problem.NO_ROUTE) is not None) == answered
    icmp6 = bytearray(replace(SIX, protocol=58).data())
    for kind, answered in ((128, True), (1, False), (2, False)):
        icmp6[40] = kind
        assert (error_about(bytes(icmp6), Problem.NO_ROUTE) is not None) == answered
    fragment = bytearray(FOUR.data())
    fragment[7] = 1
    assert error_about(bytes(fragment), Problem.NO_ROUTE) is None
    group, nobody = bytes([224, 0, 0, 1]), bytes(4)
    for packet in (
        replace(FOUR, target=group),
        replace(FOUR, source=group),
        replace(FOUR, source=nobody),
        replace(FOUR, target=b"\xff" * 4),
        replace(SIX, source=bytes(16)),
        replace(SIX, source=b"\xff" + bytes(15)),
        replace(SIX, target=b"\xff" + bytes(15)),
    ):
        assert error_about(packet.data(), Problem.NO_ROUTE) is None
    # Except that a group's members may learn the path's MTU (RFC 4443).
    assert error_about(replace(SIX, target=b"\xff" * 16).data(), Problem.TOO_BIG, 1300)
    # Too short to tell what is inside.
    assert error_about(bytes(icmp[:20]), Problem.NO_ROUTE) is None
    assert error_about(bytes(icmp6[:40]), Problem.NO_ROUTE) is None


def test_groups() -> None:
    assert [is_multicast(bytes(one)) for one in ([224, 0, 0, 1], [239] * 4, [255] * 4)] == [
        True
    ] * 3
    assert not is_multicast(bytes([10, 244, 1, 255]))
    assert is_multicast(b"\xff\x02" + bytes(14)) and not is_multicast(b"\xfd" + bytes(15))


def test_groups_of_the_link() -> None:
    on_link = [bytes([224, 0, 0, 22]), b"\xff\x02" + bytes(14)]
    others = [bytes([224, 0, 1, 1]), b"\xff\x05" + bytes(14), bytes([10, 0, 0, 1])]
    assert [stays_on_link(one) for one in on_link + others] == [True] * 2 + [False] * 3
