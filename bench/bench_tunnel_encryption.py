#!/usr/bin/env python3
"""What encrypting the UDP tunnel costs: packets sealed and opened a second, on one core.

The limit in the same run is the cipher alone: `cryptography`'s call for each packet, with its
arguments made beforehand. ChaCha20-Poly1305 is there to compare.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.harness import show, spread
from podwire.tunnel.secure import OVERHEAD, BatchBuffer, SecurePeers

ROUNDS = 7
#: Packet size and packets in one batch: a TCP stream's, small ones that came together, single ones.
SHAPES = [(1400, 45), (64, 64), (1400, 1), (64, 1)]
_PACKETS = 20_000


def timed(work: Callable[[], object], packets: int) -> float:
    """Packets a second, where one call does so many."""
    calls = _PACKETS // packets
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return calls * packets / (time.perf_counter() - start)


def connected() -> tuple[SecurePeers, SecurePeers]:
    a, b = SecurePeers(os.urandom(32)), SecurePeers(os.urandom(32))
    a.set_peer("b", b.public_key)
    b.set_peer("a", a.public_key)
    a.seal("b", b"first")
    while a.outbox or b.outbox:
        for _, datagram in a.take_outbox():
            b.open("a", datagram)
        for _, datagram in b.take_outbox():
            a.open("b", datagram)
    return a, b


def ciphers(size: int, packets: int) -> dict[str, Callable[[], object]]:
    """The AEAD calls of one batch and nothing else, with the output left where it falls."""
    plain = [memoryview(os.urandom(size))] * packets
    out = [memoryview(bytearray(size + 16))] * packets
    nonces = [number.to_bytes(12, "big") for number in range(packets)]

    def sealer(cipher: AESGCM | ChaCha20Poly1305) -> Callable[[], object]:
        return lambda: deque(map(cipher.encrypt_into, nonces, plain, repeat(None), out), 0)

    return {
        "AES-256-GCM alone": sealer(AESGCM(os.urandom(32))),
        "ChaCha20-Poly1305 alone": sealer(ChaCha20Poly1305(os.urandom(32))),
    }


def measure(size: int, packets: int) -> dict[str, float]:
    a, b = connected()
    length = size * packets
    source = BatchBuffer(memoryview(os.urandom(length)))
    sealed = BatchBuffer(memoryview(bytearray(length + packets * OVERHEAD)))
    opened = BatchBuffer(memoryview(bytearray(length)))
    figures = {name: timed(work, packets) for name, work in ciphers(size, packets).items()}
    figures["sealed"] = timed(lambda: a.seal_into("b", source, length, size, sealed), packets)
    spent = 0.0
    for _ in range(_PACKETS // packets):
        end = a.seal_into("b", source, length, size, sealed)
        start = time.perf_counter()
        b.open_into("a", sealed, end, size + OVERHEAD, opened)
        spent += time.perf_counter() - start
    figures["opened"] = _PACKETS // packets * packets / spent
    if b.counters["not_authentic"] or b.counters["replayed"] or opened.view != source.view:
        raise SystemExit("the packets did not come out as they went in")
    return figures


def main() -> None:
    for size, packets in SHAPES:
        runs = [measure(size, packets) for _ in range(ROUNDS)]
        limits = {name: [run[name] / 1000 for run in runs] for name in runs[0]}
        alone = f"AES alone {spread(limits['AES-256-GCM alone'], 0)}"
        show(
            f"Packets of {size} bytes, {packets} at once, thousands a second on one core",
            [
                ("sealed", spread(limits["sealed"], 0), alone),
                ("opened", spread(limits["opened"], 0), alone),
                ("ChaCha20-Poly1305 alone", spread(limits["ChaCha20-Poly1305 alone"], 0), alone),
            ],
        )


if __name__ == "__main__":
    main()
