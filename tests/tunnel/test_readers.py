"""Descriptors that are looked at one by one, or together: all are heard, each by its own pump."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from podwire.tunnel.readers import Events, Pump, Readers


class Ears:
    """Eight descriptors, all of which hear often, and who was called."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.readers = Readers(self._epoll, self.move)
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(8)]
        self.heard: list[tuple[int, bool]] = []
        for fd in self.fds:
            self.readers.set(fd, self.pump(fd), often=True)

    def close(self) -> None:
        self._epoll.close()
        for fd in self.fds:
            os.close(fd)

    def move(self, ready: Events, drain: bool) -> bool:
        many = False
        for fd, _ in ready:
            many |= self.readers.pumps[fd](drain)
        return many

    def say(self, *fds: int) -> list[int]:
        """Who was called when there was something to read at these descriptors."""
        for fd in fds:
            os.eventfd_write(fd, 1)
        self.heard.clear()
        many = self.move(self.readers.poll(0), True)
        assert many == bool(self.heard) and all(drain for _, drain in self.heard)
        return sorted(fd for fd, _ in self.heard)

    def pump(self, fd: int) -> Pump:
        def pump(drain: bool) -> bool:
            os.eventfd_read(fd)
            self.heard.append((fd, drain))
            return True

        return pump


@pytest.fixture
def ears() -> Iterator[Ears]:
    made = Ears()
    yield made
    made.close()


def test_all_are_heard(ears: Ears) -> None:
    assert ears.say() == []
    for fd in ears.fds:
        assert ears.say(fd) == [fd]
    assert ears.say(*ears.fds) == sorted(ears.fds)


def test_who_is_dropped_is_not_heard_until_it_is_set_again(ears: Ears) -> None:
    first, *others = ears.fds
    ears.readers.drop(first)
    ears.readers.drop(first)
    assert ears.say(*others) == sorted(others)
    assert ears.say(first) == []
    last = ears.fds[-1]
    ears.readers.drop(last)
    os.eventfd_read(first)
    for fd in (last, first):
        ears.readers.set(fd, ears.pump(fd), often=True)
    assert ears.say(*ears.fds) == sorted(ears.fds)
