"""Who is called when there is something to read at a descriptor, and how that is learned.

The kernel is asked for a few descriptors one by one, by poll(2): who looks again and again, and
finds something each second time, is told sooner by that than by epoll, for which every packet is
noted down when it comes and crossed out later. All other descriptors are in an epoll, which is one
of those few.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

#: Moves what waits at a descriptor: all of it, up to a bound, or, if told False, one batch. Whether
#: that was many packets.
Pump = Callable[[bool], bool]
#: Descriptors and what is the matter with them: EPOLLIN, EPOLLERR, which poll(2) has too.
Events = list[tuple[int, int]]

#: The few, but for the epoll: each makes all looking longer.
_FEW = 4
#: Descriptors of the epoll that are heard of at once.
_EVENTS = 8


class Readers:
    """The descriptors of the data path, and their pumps; `epoll` has others besides."""

    def __init__(self, epoll: select.epoll, move: Callable[[Events, bool], bool]) -> None:
        """`move` calls the pumps of what is ready, as its caller is told to."""
        self._epoll = epoll
        self._poll = select.poll()
        self._poll.register(epoll, select.POLLIN)
        self._few: set[int] = set()
        self.pumps: Final[dict[int, Pump]] = {
            epoll.fileno(): lambda drain: move(epoll.poll(0, _EVENTS), drain)
        }
        #: What is ready, after the given milliseconds at the latest (-1: however long).
        self.poll: Final[Callable[[float], Events]] = self._poll.poll

    def set(self, fd: int, pump: Pump, *, often: bool) -> None:
        """From now on `pump` reads `fd`, where much comes or little."""
        if fd not in self.pumps:
            if often and len(self._few) < _FEW:
                self._few.add(fd)
                self._poll.register(fd, select.POLLIN)
            else:
                self._epoll.register(fd, select.EPOLLIN)
        self.pumps[fd] = pump

    def drop(self, fd: int) -> None:
        """Nobody reads `fd`, which is about to be closed."""
        if self.pumps.pop(fd, None) is None:
            return
        if fd in self._few:
            self._few.remove(fd)
            self._poll.unregister(fd)
        else:
            self._epoll.unregister(fd)
