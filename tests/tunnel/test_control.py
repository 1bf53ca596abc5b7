"""Frames: whatever pieces they come in."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.errors import InputError
from podwire.model.tunnel import (
    Answer,
    Configure,
    Done,
    Failed,
    GetStats,
    PeerStats,
    Ready,
    RemovePeer,
    Request,
    SetPeer,
    Stats,
    Stop,
    TunnelConfig,
    TunnelPeer,
)
from podwire.tunnel.control import MAX_FRAME, Frames, pack

CONFIG = TunnelConfig(
    dev="flannel0", local=("192.0.2.1",), subnets=("10.244.1.0/24",), private_key=b"k" * 32
)
PEER = TunnelPeer(name="node2", subnets=("10.244.2.0/24",), address="192.0.2.2")
REQUESTS: list[Request] = [
    Configure(CONFIG, (PEER,)),
    SetPeer(PEER),
    RemovePeer("node2"),
    GetStats(),
    Stop(),
]
ANSWERS: list[Answer] = [
    Ready(("tso4", "gso"), 42),
    Done(),
    Failed("no", "do this"),
    Stats(
        drops={"no_lease": 1},
        encryption={},
        peers=(
            PeerStats(
                name="node2",
                sent_packets=1,
                sent_bytes=2,
                received_packets=3,
                received_bytes=4,
                heard_s=None,
                handshake_s=1.5,
                path_mtu=1472,
            ),
        ),
    ),
]


@given(st.lists(st.integers(1, 40), max_size=30))
@settings(max_examples=30)
def test_frames_come_out_as_they_went_in(cuts: list[int]) -> None:
    data = b"".join(map(pack, REQUESTS))
    frames: Frames[Request] = Frames(Request)
    found: list[Request] = []
    for cut in cuts:
        found += frames.feed(data[:cut])
        data = data[cut:]
    found += frames.feed(data)
    assert found == REQUESTS


def test_answers_come_out_as_they_went_in() -> None:
    frames: Frames[Answer] = Frames(Answer)
    assert list(frames.feed(b"".join(map(pack, ANSWERS)))) == ANSWERS


@pytest.mark.parametrize(
    "data",
    [
        (MAX_FRAME + 1).to_bytes(4, "big"),
        b"\0\0\0\x01\xc1",
        b"\0\0\0\0",
        pack(Done()),
        b"\0\0\0\x0d" + b"\x82\xa4type\xa4stop\xa1a",
        (10_013).to_bytes(4, "big") + b"\x82\xa4type\xa4stop\xa1a" + b"\x91" * 10_000,
    ],
)
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="frame"):
        list(Frames[Request](Request).feed(data))


@given(st.binary(max_size=60))
@settings(max_examples=100)
def test_nonsense_is_refused_or_waited_for(data: bytes) -> None:
    with contextlib.suppress(InputError):
        list(Frames[Request](Request).feed(data))
