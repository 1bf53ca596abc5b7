"""Ends of encrypted tunnels in one process, with a clock that only tests move."""

from __future__ import annotations

import random
from collections.abc import Callable

from podwire.tunnel.secure import SecurePeers


class Clock:
    """Monotonic seconds and wall nanoseconds that stand still until told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall_offset_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> int:
        return int((self.now + self.wall_offset_s) * 1e9)


class Ends:
    """`a` and `b`, each the other's peer, and the wire between them, whose datagrams tests see."""

    def __init__(self, seed: int = 0) -> None:
        self.clock = Clock()
        self._random = random.Random(seed)
        self.a = self.end(1)
        self.b = self.end(2)
        self.a.set_peer("b", self.b.public_key)
        self.b.set_peer("a", self.a.public_key)
        self.received: dict[str, list[bytes]] = {"a": [], "b": []}

    def end(self, key: int) -> SecurePeers:
        """A new end with the key that this number stands for."""
        return SecurePeers(
            bytes([key]) * 32,
            self.clock,
            wall_clock=self.clock.wall,
            randomness=self._random.randbytes,
        )

    def send(self, source: str, packet: bytes) -> None:
        """A packet from one end, delivered with all that follows from it."""
        sender, target = (self.a, "b") if source == "a" else (self.b, "a")
        datagram = sender.seal(target, packet)
        if datagram is not None:
            self.deliver(target, datagram)
        self.settle()

    def deliver(self, target: str, datagram: bytes) -> None:
        """One datagram arrives."""
        receiver, source = (self.a, "b") if target == "a" else (self.b, "a")
        packet = receiver.open(source, datagram)
        if packet is not None:
            self.received[target].append(packet)

    def settle(self) -> None:
        """Deliver all datagrams that the ends have to send, until there are none."""
        while self.a.outbox or self.b.outbox:
            for end in (self.a, self.b):
                for target, datagram in end.take_outbox():
                    self.deliver(target, datagram)

    def pass_time(
        self, seconds: float, *, meanwhile: Callable[[], None] | None = None, step: float = 0.25
    ) -> None:
        """Let time pass as a loop would see it: polled when due, and `meanwhile` at each step."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + step)
            for side in (self.a, self.b):
                if self.clock.now >= side.deadline:
                    side.poll()
            self.settle()
            if meanwhile is not None:
                meanwhile()
