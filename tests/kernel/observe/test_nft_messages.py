"""nf_tables messages as pure functions: what the kernel tells is read, garbage is not."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.kernel.netlink import NLM_F_ACK, attr, attr_str, message, nested, split
from podwire.kernel.observe import nft_messages
from podwire.kernel.observe.nft_messages import TraceMessage, parse_trace

TRACE = 10 << 8 | 17
HEADER = b"\x01\0\0\0"  # family inet


def be32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("!I", value & 0xFFFFFFFF))


def told(kind: int, *more: bytes) -> TraceMessage | None:
    about = attr_str(1, "filter") + attr_str(2, "forward") + be32(4, kind) + be32(6, 0xABCD)
    return parse_trace(TRACE, HEADER + about + b"".join(more))


def test_a_rule_comes_with_verdict_interfaces_and_headers() -> None:
    verdict = nested(5, be32(1, 0))
    handle = attr(3, struct.pack("!Q", 2**40))
    more = (be32(10, 3), be32(12, 4), be32(14, 7), attr(8, b"network, "), attr(9, b"transport"))
    assert told(3, verdict, handle, *more) == TraceMessage(
        id=0xABCD,
        kind="rule",
        family=nft_messages.INET,
        table="filter",
        chain="forward",
        handle=2**40,
        verdict="drop",
        iif=3,
        oif=4,
        mark=7,
        data=b"network, transport",
    )


@pytest.mark.parametrize(
    ("code", "chain", "text"),
    [
        (0, "", "drop"),
        (0x00160000, "", "drop"),  # with a reason in its upper half
        (1, "", "accept"),
        (3 | 7 << 16, "", "queue"),
        (-1, "", "continue"),
        (-3, "mine", "jump mine"),
        (-4, "mine", "goto mine"),
    ],
)
def test_verdicts_are_called_as_nft_calls_them(code: int, chain: str, text: str) -> None:
    one = told(3, nested(5, be32(1, code), *([attr_str(2, chain)] if chain else [])))
    assert one is not None
    assert one.verdict == text


@pytest.mark.parametrize(("code", "text"), [(0, "drop"), (1, "accept")])
def test_a_policy_s_verdict_is_the_policy(code: int, text: str) -> None:
    one = told(1, be32(16, code))
    assert one is not None
    assert (one.kind, one.verdict, one.handle) == ("policy", text, 0)


@given(st.binary(max_size=120))
def test_garbage_is_nothing_or_an_empty_step(data: bytes) -> None:
    parse_trace(TRACE, data)
    nft_messages.parse_table(HEADER + data)


def test_what_is_no_trace_is_none() -> None:
    assert parse_trace(10 << 8 | 6, HEADER) is None
    assert parse_trace(TRACE, b"") is None
    assert told(0) is None


def test_the_end_of_a_batch_rides_on_its_last_message() -> None:
    """The socket asks for an acknowledgement of the last: that must not be the end itself."""
    pieces = nft_messages.batch([message(1, 0, b"one!"), message(2, 0, b"two!")])
    assert [[kind for kind, *_ in split(piece)] for piece in pieces] == [[0x10], [1], [2, 0x11]]
    assert all(not flags & NLM_F_ACK for piece in pieces for _, flags, _, _ in split(piece))


def test_a_value_longer_than_a_register_takes_two() -> None:
    assert len(nft_messages.equals(nft_messages.NETWORK, 8, bytes(32))) == 4
    assert len(nft_messages.equals(nft_messages.NETWORK, 8, bytes(16))) == 2
