"""Who is called when there is something to read at a descriptor."""

from __future__ import annotations

import select
from collections.abc import Callable

#: Moves what waits at a descriptor: all of it, up to a bound, or, if told False, one batch. Whether
#: that was many packets.
Pump = Callable[[bool], bool]


class Readers:
    """The descriptors of the data path in an epoll, and their pumps."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self.pumps: dict[int, Pump] = {}

    def set(self, fd: int, pump: Pump) -> None:
        """From now on `pump` reads `fd`."""
        if fd not in self.pumps:
            self._epoll.register(fd, select.EPOLLIN)
        self.pumps[fd] = pump

    def drop(self, fd: int) -> None:
        """Nobody reads `fd`, which is about to be closed."""
        if self.pumps.pop(fd, None) is not None:
            self._epoll.unregister(fd)
