"""How the tunnel's thread waits for packets.

Where they follow each other closely it goes on looking, and lets others run in between, before it
goes to sleep: what comes meanwhile is spared the wakeup, which takes several times as long as the
packet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from podwire.kernel.scheduling import ask_for_slice
from podwire.tunnel.readers import Events

#: How long to look again before going to sleep, where sleep was shorter than that of late; and how
#: often in vain until it is no longer tried. KVM's halt_poll_ns, for the same reason, is as long.
_LINGER_S = 200e-6
_PATIENCE = 4
#: The same after many packets: for less long, since it is others now who have work to do with them;
#: and at first without letting anybody run, since the next may be about to come.
_GLANCE_S, _SHORT_LINGER_S = 15e-6, 50e-6
#: The slices of the processor that are asked for: the kernel's least where packets come one at a
#: time, so as to be on soon when one comes, and to lose little by yielding; and longer ones where
#: there are many, since each change of process costs all of them. The latter until so many waits in
#: a row were calm.
_SHORT_SLICE_S, _LONG_SLICE_S = 1e-4, 1e-3
_CALM_WAITS = 16


class Waiting:
    """Waits by `poll` (see `Readers.poll`); remembers how long it took of late."""

    def __init__(self, poll: Callable[[float], Events]) -> None:
        self._poll = poll
        #: How often more to linger in vain.
        self._patience = 0
        #: Calm waits until slices become short.
        self._restless = _CALM_WAITS

    def wait(self, timeout: Callable[[], float], *, calm: bool) -> Events:
        """What is ready, once there is anything, or after the milliseconds that `timeout` tells
        (-1: however long)."""
        poll, clock = self._poll, time.perf_counter
        self._pace(calm=calm)
        started = clock()
        if calm and self._patience:
            while clock() - started < _LINGER_S:
                os.sched_yield()
                ready = poll(0)
                if ready:
                    self._patience = _PATIENCE
                    return ready
            self._patience -= 1
        while not calm and (waited := clock() - started) < _SHORT_LINGER_S:
            if waited >= _GLANCE_S:
                os.sched_yield()
            if ready := poll(0):
                return ready
        ready = poll(timeout())
        if clock() - started < _LINGER_S:
            self._patience = _PATIENCE
        return ready

    def _pace(self, *, calm: bool) -> None:
        if not calm:
            if not self._restless:
                ask_for_slice(_LONG_SLICE_S)
            self._restless = _CALM_WAITS
        elif self._restless:
            self._restless -= 1
            if not self._restless:
                ask_for_slice(_SHORT_SLICE_S)
