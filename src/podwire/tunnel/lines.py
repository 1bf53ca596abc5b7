"""Which peers have a socket of their own, a line.

What lives here: how a peer gets one, and loses it. What does not: how it is made and used
(`sockets`).

Through a socket that is connected datagrams go to one place and come from there only. So the kernel
needs no route for each, and nobody its address: both directions together take 3 µs less. But a line
takes a descriptor, and before Linux 6.13 each socket of a port costs every datagram a little. So
there are few; a peer earns one by what it sends, and where there is none left it gets that of a
peer that has fallen silent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from podwire.errors import KernelError
from podwire.log import fields
from podwire.tunnel.readers import Pump, Readers
from podwire.tunnel.sockets import Underlay
from podwire.tunnel.table import Line, Place, Table

log = logging.getLogger(__name__)

#: Lines of one underlay socket.
MOST = 64
#: Batches that a peer has to send for it.
EARNED = 32


class Lines:
    """The lines of one underlay socket; `pump_of` says how one is read."""

    def __init__(
        self, underlay: Underlay, table: Table, readers: Readers, pump_of: Callable[[Line], Pump]
    ) -> None:
        self._underlay, self._table, self._readers = underlay, table, readers
        self._pump_of = pump_of
        #: Batches that came from peers without a line.
        self._earned: dict[Place, int] = {}
        for line in underlay.lines.values():
            readers.set(line.fd, pump_of(line), often=True)

    def earn(self, place: Place, batches: int) -> None:
        """A peer without a line has sent so many batches."""
        earned = self._earned.get(place, 0) + batches
        if earned >= EARNED:
            earned = 0
            if self._has_room():
                self._open(place)
        self._earned[place] = earned

    def look_again(self) -> None:
        """Peers have changed: lines go to those that are there now, or are closed."""
        places = self._table.by_source
        for line in list(self._underlay.lines.values()):
            if line.place in places:
                self._tie(line)
            else:
                self._close(line)
        self._earned = {place: count for place, count in self._earned.items() if place in places}

    def _open(self, place: Place) -> None:
        try:
            line = self._underlay.connect(place)
        except KernelError as error:
            # It goes on without; the next try is when as much has been sent again.
            log.info("no socket of its own", extra=fields(peer=place[0], error=error))
        else:
            self._tie(line)
            self._readers.set(line.fd, self._pump_of(line), often=True)

    def _tie(self, line: Line) -> None:
        if line.peer is not None:
            line.peer.line = None
        peer = self._table.by_source[line.place]
        line.peer, peer.line = peer, line

    def _close(self, line: Line) -> None:
        if line.peer is not None:
            line.peer.line = None
        self._readers.drop(line.fd)
        self._underlay.disconnect(line)

    def _has_room(self) -> bool:
        """Whether there is a line left, or one that nothing came by since this was last asked."""
        lines = self._underlay.lines
        if len(lines) < MOST:
            return True
        silent = None
        for line in lines.values():
            received = self._table.by_source[line.place].received_packets
            if received == line.received:
                silent = line
            line.received = received
        if silent is None:
            return False
        self._close(silent)
        return True
