"""A capture from its asker's side: several agents' frames, put in order, until it is enough.

What lives here: who is asked for what, the order in which frames are written, and the end. What
does not: the file (`capture_file`), and what is told to the person.

    agents ── frames ──▶ window ── in the order of time ──▶ CaptureFile ── bytes ──▶ write()

Frames of one agent come in batches, those of several in any order, so they are kept for a moment
(the window) before they are written. Clocks of several machines are compared by what each says
that it is when it greets: good to the time that takes. A frame that comes later than the window is
written where it is. While `write` blocks nothing is read, so agents' rings fill and tell what they
have lost: this side never holds more than the window.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from podwire.errors import AgentAwayError, PodwireError
from podwire.model.probe import IPText
from podwire.trace.capture_file import CaptureFile, names
from podwire.trace.connection import Connection
from podwire.trace.decode import USUAL, TunnelPorts
from podwire.trace.evidence import NodeFacts, PodFacts
from podwire.trace.model import Place
from podwire.trace.records import Frame
from podwire.trace.watcher import Dial, together
from podwire.trace.wire import Capture, Frames, Stop

_WINDOW_NS = 100_000_000
#: Agents that are asked at once; on a cluster each is a stream through the API server.
_AT_ONCE = 32
#: An agent that has not answered for so long is away.
_PATIENCE_S = 5.0
#: One that does not stop in this time is left: what it has sent by then is written.
_STOP_S = 3.0


@dataclass(frozen=True)
class Share:
    """What is wanted of one node: its `own` namespace, `pods` by name, or `all_pods`.

    A capture goes on without a node that is not `needed`, and says so.
    """

    node: str
    own: bool = False
    pods: tuple[str, ...] = ()
    all_pods: bool = False
    needed: bool = True


@dataclass
class Source:
    """An agent that captures for us. `offset_ns` is its clock less ours, `lost` not yet told."""

    share: Share
    connection: Connection
    offset_ns: int
    places: tuple[Place, ...]
    lost: int = 0
    gone: bool = False


class Window:
    """Frames wait here until those of other agents that were before them have come."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, Source, Frame, int]] = []
        self._numbers = itertools.count()

    def put(self, source: Source, frame: Frame, lost: int) -> None:
        """`lost` frames of this agent were lost before this one."""
        when = frame.time_ns - source.offset_ns
        heapq.heappush(self._waiting, (when, next(self._numbers), source, frame, lost))

    def take(self, until_ns: int | None) -> Iterable[tuple[Source, Frame, int]]:
        """Those until that time (ours), all with None, in the order of time."""
        waiting = self._waiting
        while waiting and (until_ns is None or waiting[0][0] <= until_ns):
            yield heapq.heappop(waiting)[2:]

    def __len__(self) -> int:
        return len(self._waiting)


@dataclass
class Capturing:
    """A capture that runs. `open` and `run` it, `stop` it from wherever.

    `write` gets the file's bytes, may block, and may raise BrokenPipeError, which ends the
    capture. `tell` gets a line for the person. `most` packets are written, None for no end.
    """

    write: Callable[[bytes], object]
    tell: Callable[[str], object]
    filter_text: str = ""
    snaplen: int = 262144
    most: int | None = None
    sources: list[Source] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    packets: int = 0
    incomplete: bool = False
    broken: bool = False

    async def open(
        self,
        dial: Dial,
        shares: Sequence[Share],
        nodes: Sequence[NodeFacts],
        pods: Sequence[PodFacts],
    ) -> None:
        """Have every agent open its taps: what is sent after this is seen.

        Raises PodwireError where an agent that is needed can't, or none can.
        """
        self._stopped = asyncio.Event()
        self._arrived = asyncio.Event()
        self._window = Window()
        found: dict[int, Source] = {}
        limit = asyncio.Semaphore(_AT_ONCE)

        async def begin(number: int, share: Share) -> None:
            try:
                async with limit:
                    found[number] = await self._begin(dial, share)
            except TimeoutError:
                away = AgentAwayError(f"the agent of {share.node} does not answer")
                self._left_out(share, away)
            except AgentAwayError as error:
                self._left_out(share, error)

        await together(*(begin(number, share) for number, share in enumerate(shares)))
        self.sources = [found[number] for number in sorted(found)]
        if not self.sources:
            raise AgentAwayError("no agent can be asked", remedy="; ".join(self.notes))
        self._align()
        self.file = CaptureFile(
            self._called(nodes, pods),
            filter_text=self.filter_text,
            snaplen=self.snaplen,
            ports=self._ports(),
        )
        self._out(self.file.head())

    async def run(self, duration_s: float | None = None) -> None:
        """Write what is seen, until `stop`, the most packets, the time, or the last agent's end."""
        work = [asyncio.create_task(self._pump(source)) for source in self.sources]
        work.append(asyncio.create_task(self._write_in_order()))
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            await _first(stopped, *work, timeout_s=duration_s)
            await asyncio.gather(*(self._stop(source) for source in self.sources))
        finally:
            for task in (stopped, *work):
                task.cancel()
            await asyncio.wait((stopped, *work))
        for task in work:
            if not task.cancelled():
                task.result()
        for source in self.sources:
            self._drain(source)
        self._emit(None)
        self._out(self.file.tail(time.time_ns()))

    def stop(self) -> None:
        """End it: what has been seen until now is still written."""
        self._stopped.set()

    @property
    def places(self) -> int:
        """How many namespaces are watched."""
        return sum(len(source.places) - (0 if source.share.own else 1) for source in self.sources)

    # --- agents -------------------------------------------------------------------------------

    async def _begin(self, dial: Dial, share: Share) -> Source:
        connection = await dial(share.node)
        offset = connection.welcome.time_ns - time.time_ns()
        request = Capture(
            id=0,
            filter=self.filter_text,
            pods=share.pods,
            all_pods=share.all_pods,
            node=share.own,
            snaplen=self.snaplen,
        )
        async with asyncio.timeout(_PATIENCE_S):
            observing = await connection.call(request)
        self.notes += [f"{share.node}: {note}" for note in observing.notes]
        return Source(share, connection, offset, observing.places)

    def _left_out(self, share: Share, error: PodwireError) -> None:
        if share.needed:
            raise error
        self.notes.append(f"{share.node} is not captured: {error.message}")
        self.incomplete = True

    def _align(self) -> None:
        """Agents of one machine have one clock."""
        offsets: dict[str, int] = {}
        for source in self.sources:
            clock = source.connection.welcome.clock
            source.offset_ns = offsets.setdefault(clock, source.offset_ns)

    async def _pump(self, source: Source) -> None:
        while (event := await source.connection.events.get()) is not None:
            if isinstance(event, Frames):
                self._take(source, event)
        self._gone(source)

    def _gone(self, source: Source) -> None:
        source.gone = True
        self.incomplete = True
        self.tell(f"the agent of {source.share.node} went away; nothing more is captured there")
        if all(one.gone for one in self.sources):
            self._stopped.set()

    async def _stop(self, source: Source) -> None:
        if source.gone:
            return
        try:
            async with asyncio.timeout(_STOP_S):
                await source.connection.call(Stop(id=0))
        except (TimeoutError, PodwireError):
            self.incomplete = True
            self.tell(f"the agent of {source.share.node} did not end its part; what came is kept")

    def _drain(self, source: Source) -> None:
        """What had come before the answer to `Stop`, and nobody had taken yet."""
        events = source.connection.events
        while not events.empty():
            event = events.get_nowait()
            if isinstance(event, Frames):
                self._take(source, event)

    # --- frames -------------------------------------------------------------------------------

    def _take(self, source: Source, event: Frames) -> None:
        lost = source.lost + event.lost
        source.lost = 0 if event.frames else lost
        for frame in event.frames:
            self._window.put(source, frame, lost)
            lost = 0
        self._arrived.set()

    async def _write_in_order(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while len(self._window):
                await asyncio.sleep(_WINDOW_NS / 2e9)
                self._emit(time.time_ns() - _WINDOW_NS)

    def _emit(self, until_ns: int | None) -> None:
        parts = []
        for source, frame, lost in self._window.take(until_ns):
            if self.most is not None and self.packets >= self.most:
                self._stopped.set()
                break
            parts.append(self.file.packet(source.places[frame.place], frame, lost=lost))
            self.packets += 1
        if parts:
            self._out(b"".join(parts))
        if self.most is not None and self.packets >= self.most:
            self._stopped.set()

    def _out(self, data: bytes) -> None:
        if self.broken:
            return
        try:
            self.write(data)
        except BrokenPipeError:
            self.broken = True
            self._stopped.set()

    # --- words --------------------------------------------------------------------------------

    def _called(self, nodes: Sequence[NodeFacts], pods: Sequence[PodFacts]) -> dict[IPText, str]:
        return names(nodes, pods, (place for source in self.sources for place in source.places))

    def _ports(self) -> TunnelPorts:
        greetings = [source.connection.welcome for source in self.sources]
        vxlan = {one.tunnel_port for one in greetings} - {0}
        bare = {one.bare_port for one in greetings} - {0}
        return TunnelPorts(tuple(sorted(vxlan)) or USUAL.vxlan, tuple(sorted(bare)))


async def _first(
    stopped: asyncio.Task[object], *work: asyncio.Task[None], timeout_s: float | None
) -> None:
    """Wait until it is stopped, or something fails: a pump that ends is no failure."""
    waiting: set[asyncio.Task[Any]] = {stopped, *work}
    loop = asyncio.get_running_loop()
    end = None if timeout_s is None else loop.time() + timeout_s
    while not stopped.done():
        left = None if end is None else end - loop.time()
        if left is not None and left <= 0:
            return
        done, waiting = await asyncio.wait(
            waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
        )
        if any(task.exception() is not None for task in done):
            return
