"""Watching a node's places for somebody: every tap in one thread, what they see in messages.

What lives here: which taps a request needs, and their life. What does not: the taps themselves
(`podwire.kernel.observe`), the places (`places`).

    taps ──selector──▶ thread ──deliver()──▶ whoever asked (waits until there is room)

While the asker does not keep up, nothing is read: the kernel's rings fill, and what they have no
room for is counted. So a slow reader costs memory nowhere, and is told what it missed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from podwire.errors import PodwireError
from podwire.kernel.observe.drops import DropTap
from podwire.kernel.observe.frames import FrameTap
from podwire.kernel.observe.nft_trace import NftTap, RawNftStep
from podwire.kernel.observe.pcap_filter import compile_for_all
from podwire.kernel.observe.probe_filter import probe_filter
from podwire.model.state import Why
from podwire.trace.places import Places
from podwire.trace.records import Drop, Frame, NftStep
from podwire.trace.wire import Capture, Drops, Frames, NftSteps, Observe

log = logging.getLogger(__name__)

Seen = Frames | Drops | NftSteps
WhyOfRule = Callable[[RawNftStep], Why | None]


class Tap(Protocol):
    """Something of the kernel's that is readable when it has seen something."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


#: A capture's messages are not larger than this, in bytes of frames.
_BATCH_BYTES = 1024 * 1024
#: Frames that a capture's ring has room for, at the node itself and at each pod.
_NODE_RING, _POD_RING = 8192, 1024


class Observer:
    """Taps that are read, from `start` to `close`.

    `deliver` is called in the observer's thread, may wait, and returns whether more is wanted.
    """

    def __init__(self, places: Places, deliver: Callable[[Seen], bool]) -> None:
        self.notes: list[str] = []
        self._places = places
        self._deliver = deliver
        self._wanted = True
        self._stopping = False
        self._readers: list[Callable[[], None]] = []
        self._stack = contextlib.ExitStack()
        self._selector = self._stack.enter_context(selectors.DefaultSelector())
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stack.callback(os.close, self._wake)
        self._selector.register(self._wake, selectors.EVENT_READ, lambda: None)
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    # --- what is watched ------------------------------------------------------------------

    def observe(self, request: Observe, why: WhyOfRule) -> None:
        """Watch for a probe's packets. `why` tells who wanted a rule.

        What the kernel lacks is noted. Raises PodwireError where frames can't be captured.
        """
        program = probe_filter(request.match)
        for number, place in enumerate(self._places.opened):
            self._add_frames(number, FrameTap(place.fd, program))
        if request.nft:
            with self._noted("rules"):
                for number, place in enumerate(self._places.opened):
                    self._add_steps(number, NftTap(place.fd, request.match), why)
        if request.drops:
            with self._noted("drop reasons"):
                self._add_drops(DropTap(request.match))

    def capture(self, request: Capture) -> None:
        """Capture what the filter lets through. Raises InputError for a wrong filter."""
        program = compile_for_all(request.filter)
        for number, place in enumerate(self._places.opened):
            if number or request.node:
                room = _POD_RING if number else _NODE_RING
                tap = FrameTap(place.fd, program, snaplen=request.snaplen, frames=room)
                self._add_frames(number, tap)

    @contextlib.contextmanager
    def _noted(self, what: str) -> Iterator[None]:
        try:
            yield
        except PodwireError as error:
            self.notes.append(f"{what} can't be seen: {error.message}")

    def _add_frames(self, place: int, tap: FrameTap) -> None:
        known = 0

        def read() -> None:
            nonlocal known
            frames = [Frame(place, *raw) for raw in tap.read()]
            lost, known = tap.lost - known, tap.lost
            for batch in _batches(frames):
                self._send(Frames(frames=tuple(batch), lost=lost))
                lost = 0
            if lost:
                self._send(Frames(frames=(), lost=lost))

        self._add(tap, read)

    def _add_drops(self, tap: DropTap) -> None:
        by_inode = self._places.by_inode

        def read() -> None:
            drops = tuple(
                Drop(
                    place=by_inode.get(raw.netns),
                    ifindex=raw.ifindex,
                    interface=raw.interface,
                    time_ns=raw.time_ns,
                    reason=raw.reason,
                    location=raw.location,
                    data=raw.data,
                )
                for raw in tap.read()
            )
            if drops:
                self._send(Drops(drops=drops))

        self._add(tap, read)

    def _add_steps(self, place: int, tap: NftTap, why: WhyOfRule) -> None:
        known = 0

        def read() -> None:
            nonlocal known
            steps = tuple(
                NftStep(
                    place=place,
                    why=why(raw) if raw.rule and place == 0 else None,
                    **raw._asdict(),
                )
                for raw in tap.read()
            )
            lost, known = tap.lost - known, tap.lost
            if steps or lost:
                self._send(NftSteps(steps=steps, lost=lost))

        self._add(tap, read)

    def _add(self, tap: Tap, read: Callable[[], None]) -> None:
        self._stack.callback(tap.close)
        self._readers.append(read)
        self._selector.register(tap.fileno(), selectors.EVENT_READ, read)

    # --- life -----------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Deliver what the kernel has seen by now, and read no more. Waits for `deliver`."""
        self._stopping = True
        self._join()

    def close(self) -> None:
        """Close everything, as soon as a `deliver` under way has returned. Twice is fine.

        It takes some 50 ms: the kernel waits until no processor uses a tap any more.
        """
        self._wanted = self._wanted and self._stopping
        self._join()
        with self._closing:
            self._stack.close()

    def _join(self) -> None:
        if self._thread.is_alive():
            os.eventfd_write(self._wake, 1)
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._wanted and not self._stopping:
                for key, _ in self._selector.select():
                    key.data()
            for read in self._readers:
                if self._wanted:
                    read()
        except Exception:
            log.exception("observing ended")

    def _send(self, message: Seen) -> None:
        if self._wanted and not self._deliver(message):
            self._wanted = False


def _batches(frames: Iterable[Frame]) -> Iterator[list[Frame]]:
    batch: list[Frame] = []
    size = 0
    for frame in frames:
        batch.append(frame)
        size += len(frame.data)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
