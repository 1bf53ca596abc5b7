"""Several agents' frames in one file: their order, and every way in which it may end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from podwire.errors import AgentAwayError, PodwireError
from podwire.trace.capturing import Capturing, Share, Source, Window
from podwire.trace.connection import Connection
from podwire.trace.evidence import NodeFacts
from podwire.trace.model import Interface, Place
from podwire.trace.records import Frame
from podwire.trace.wire import (
    Capture,
    Failed,
    Frames,
    Observing,
    Request,
    Response,
    Stop,
    Stopped,
    pack,
)

from .agent_stub import StubAgent, stub_agent, until, welcome

NODES = (
    NodeFacts(name="node1", ips=("172.18.0.11",)),
    NodeFacts(name="node2", ips=("172.18.0.12",)),
)
EVERYTHING = [Share(node.name, own=True, all_pods=True, needed=False) for node in NODES]


def frames(*times_ns: int, lost: int = 0) -> Frames:
    return Frames(
        frames=tuple(Frame(0, 2, True, at, 60, 1, bytes(60)) for at in times_ns), lost=lost
    )


def agent_of(
    node: str, at_start: list[Response], at_end: list[Response]
) -> Callable[[Request], list[Response]]:
    """Sends `at_start` when it captures, and `at_end` before it has stopped."""
    place = Place(node=node, interfaces=(Interface(index=2, name="cni0", kind="bridge"),))

    def answer(request: Request) -> list[Response]:
        match request:
            case Capture():
                return [Observing(to=request.id, places=(place,)), *at_start]
            case Stop():
                return [*at_end, Stopped(to=request.id)]
        return [Failed(to=request.id, message="what?")]

    return answer


class Agents:
    """Stubs, to be dialled by the name of their node."""

    def __init__(self, **by_node: StubAgent) -> None:
        self.by_node = by_node
        self.stack = AsyncExitStack()

    async def dial(self, node: str) -> Connection:
        if node not in self.by_node:
            raise AgentAwayError(f"the agent of {node} does not run")
        connection = await self.by_node[node].dial(f"the agent of {node}")
        self.stack.push_async_callback(connection.close)
        return connection


@asynccontextmanager
async def agents(
    path: Path,
    *,
    clocks: dict[str, tuple[str, int]] | None = None,
    start: dict[str, list[Response]] | None = None,
    end: dict[str, list[Response]] | None = None,
) -> AsyncIterator[Agents]:
    start, end = start or {}, end or {}
    async with AsyncExitStack() as stack:
        stubs = {}
        for node in ("node1", "node2"):
            clock, now = (clocks or {}).get(node, ("boot", time.time_ns()))
            greeting = pack(welcome(node, clock=clock, time_ns=now))
            answer = agent_of(node, start.get(node, []), end.get(node, []))
            stubs[node] = await stack.enter_async_context(stub_agent(path / node, answer, greeting))
        them = Agents(**stubs)
        await stack.enter_async_context(them.stack)
        yield them


class Written:
    """Takes the file's bytes, and what is told."""

    def __init__(self) -> None:
        self.data = b""
        self.told: list[str] = []

    def write(self, data: bytes) -> None:
        self.data += data

    def order(self) -> list[int]:
        """The times of the packets as they are written."""
        found, at = [], 0
        while at < len(self.data):
            kind, size = (int.from_bytes(self.data[i : i + 4], "little") for i in (at, at + 4))
            if kind == 6:
                high, low = (
                    int.from_bytes(self.data[i : i + 4], "little") for i in (at + 12, at + 16)
                )
                found.append(high << 32 | low)
            at += size
        assert at == len(self.data), "the file ends in the middle of a block"
        return found


@pytest.fixture
def out() -> Written:
    return Written()


def capturing(out: Written, most: int | None = None) -> Capturing:
    return Capturing(write=out.write, tell=out.told.append, most=most)


def window_of(*times: tuple[str, int]) -> list[tuple[str, int]]:
    window = Window()
    sources = {
        name: Source(Share(name), None, offset, ())  # type: ignore[arg-type]
        for name, offset in (("a", 0), ("b", 1000))
    }
    for name, at in times:
        window.put(sources[name], frames(at).frames[0], 0)
    return [(source.share.node, frame.time_ns) for source, frame, _ in window.take(None)]


def test_the_window_orders_by_time_on_one_clock() -> None:
    """b's clock is 1000 ns ahead; what has one time keeps its order."""
    assert window_of(("a", 5), ("b", 1003), ("a", 1), ("b", 1005), ("a", 5)) == [
        ("a", 1), ("b", 1003), ("a", 5), ("b", 1005), ("a", 5),
    ]  # fmt: skip


def test_the_window_keeps_what_is_too_young() -> None:
    window = Window()
    source = Source(Share("a"), None, 0, ())  # type: ignore[arg-type]
    for at in (3, 1, 2):
        window.put(source, frames(at).frames[0], 0)
    assert [frame.time_ns for _, frame, _ in window.take(2)] == [1, 2]
    assert len(window) == 1


async def test_frames_of_two_agents_are_written_in_the_order_of_time(
    tmp_path: Path, out: Written
) -> None:
    now = time.time_ns()
    start: dict[str, list[Response]] = {
        "node1": [frames(now + 1, now + 4)],
        "node2": [frames(now + 2, now + 3, now + 5)],
    }
    async with agents(tmp_path, start=start) as them:
        one = capturing(out, most=5)
        await one.open(them.dial, EVERYTHING, NODES, ())
        await one.run()
    assert out.order() == [now + 1, now + 2, now + 3, now + 4, now + 5]
    assert one.file.counts == {"node1/cni0": 2, "node2/cni0": 3}
    assert not one.incomplete
    assert out.told == []


async def test_clocks_an_hour_apart_are_brought_together(tmp_path: Path, out: Written) -> None:
    """By what each says its time is; a file has the times that the machines have."""
    now, hour = time.time_ns(), 3600 * 10**9
    ms = 10**6
    clocks = {"node1": ("one", now), "node2": ("two", now - hour)}
    start: dict[str, list[Response]] = {
        "node1": [frames(now + 40 * ms)],
        "node2": [frames(now - hour + 80 * ms), frames(now - hour)],
    }
    async with agents(tmp_path, clocks=clocks, start=start) as them:
        one = capturing(out, most=3)
        await one.open(them.dial, EVERYTHING, NODES, ())
        await one.run()
    assert out.order() == [now - hour, now + 40 * ms, now - hour + 80 * ms]


async def test_what_comes_while_it_ends_is_in_the_file(tmp_path: Path, out: Written) -> None:
    now = time.time_ns()
    end: dict[str, list[Response]] = {"node2": [frames(now), frames(now + 1, lost=2)]}
    async with agents(tmp_path, end=end) as them:
        one = capturing(out)
        await one.open(them.dial, EVERYTHING, NODES, ())
        one.stop()
        await one.run()
    assert out.order() == [now, now + 1]
    assert one.file.lost == {"node2/cni0": 2}


async def test_it_ends_after_the_time_or_the_most_packets(tmp_path: Path, out: Written) -> None:
    now = time.time_ns()
    start: dict[str, list[Response]] = {"node1": [frames(*range(now, now + 10))]}
    async with agents(tmp_path, start=start) as them:
        one = capturing(out, most=4)
        await one.open(them.dial, EVERYTHING, NODES, ())
        await one.run()
        assert one.packets == 4
        assert out.order() == [now, now + 1, now + 2, now + 3]
        other = capturing(Written())
        await other.open(them.dial, EVERYTHING, NODES, ())
        await other.run(duration_s=0.01)
        assert other.packets == 10


async def test_an_agent_that_goes_away_is_told_and_the_others_go_on(
    tmp_path: Path, out: Written
) -> None:
    now = time.time_ns()
    start: dict[str, list[Response]] = {"node1": [frames(now)]}
    end: dict[str, list[Response]] = {"node2": [frames(now + 1)]}
    async with agents(tmp_path, start=start, end=end) as them:
        one = capturing(out)
        await one.open(them.dial, EVERYTHING, NODES, ())
        running = asyncio.create_task(one.run())
        them.by_node["node1"].hang_up()
        await until(lambda: bool(out.told))
        one.stop()
        await running
    assert out.told == ["the agent of node1 went away; nothing more is captured there"]
    assert out.order() == [now, now + 1]
    assert one.incomplete


async def test_it_ends_with_the_last_agent(tmp_path: Path, out: Written) -> None:
    async with agents(tmp_path) as them:
        one = capturing(out)
        await one.open(them.dial, EVERYTHING, NODES, ())
        for agent in them.by_node.values():
            agent.hang_up()
        await one.run()
    assert len(out.told) == 2
    assert out.order() == []


async def test_an_agent_that_is_away_from_the_start(tmp_path: Path, out: Written) -> None:
    async with agents(tmp_path) as them:
        del them.by_node["node2"]
        one = capturing(out)
        await one.open(them.dial, EVERYTHING, NODES, ())
        assert one.notes == ["node2 is not captured: the agent of node2 does not run"]
        assert one.incomplete
        with pytest.raises(AgentAwayError, match="node2 does not run"):
            await capturing(out).open(them.dial, [Share("node2", own=True)], NODES, ())
        del them.by_node["node1"]
        with pytest.raises(AgentAwayError, match="no agent can be asked"):
            await capturing(out).open(them.dial, EVERYTHING, NODES, ())


async def test_a_reader_that_goes_away_ends_it(tmp_path: Path) -> None:
    written: list[bytes] = []

    def write(data: bytes) -> None:
        written.append(data)
        if len(written) > 1:
            raise BrokenPipeError

    now = time.time_ns()
    start: dict[str, list[Response]] = {"node1": [frames(now)]}
    async with agents(tmp_path, start=start) as them:
        one = Capturing(write=write, tell=print)
        await one.open(them.dial, EVERYTHING, NODES, ())
        await one.run()
    assert one.broken
    assert len(written) == 2


async def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    written: list[bytes] = []

    def write(data: bytes) -> None:
        written.append(data)
        if len(written) > 1:
            raise PodwireError("no space left")

    start: dict[str, list[Response]] = {"node1": [frames(time.time_ns())]}
    async with agents(tmp_path, start=start) as them:
        one = Capturing(write=write, tell=print)
        await one.open(them.dial, EVERYTHING, NODES, ())
        with pytest.raises(PodwireError, match="no space left"):
            await one.run()
