"""The asker's side of a connection, against an agent that says what it should not."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import msgspec
import pytest

from podwire.errors import AgentAwayError, PodwireError
from podwire.trace.wire import (
    VERSION,
    Ask,
    Done,
    Explain,
    Explained,
    Failed,
    Fire,
    Fired,
    Frames,
    Hold,
    Request,
    Response,
    Stop,
    Stopped,
    pack,
)

from .agent_stub import stub_agent, until, welcome


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "operator.sock"


async def test_each_call_gets_its_own_answer_in_whatever_order(path: Path) -> None:
    waiting: list[Request] = []

    def answer(request: Request) -> list[Response]:
        waiting.append(request)
        if len(waiting) < 2:
            return []
        return [
            Explained(to=one.id, found=True, text=one.thing)
            for one in reversed(waiting)
            if isinstance(one, Explain)
        ]

    async with stub_agent(path, answer) as agent:
        connection = await agent.dial()
        found = await asyncio.gather(
            *(connection.call(Explain(id=0, kind="ip", thing=thing)) for thing in ("a", "b"))
        )
        assert [one.text for one in found] == ["a", "b"]
        await connection.close()


async def test_what_was_seen_is_in_the_queue_when_the_stop_is_answered(path: Path) -> None:
    def answer(request: Request) -> list[Response]:
        return [Frames(frames=(), lost=1), Frames(frames=(), lost=2), Stopped(to=request.id)]

    async with stub_agent(path, answer) as agent:
        connection = await agent.dial()
        await connection.call(Stop(id=0))
        assert [connection.events.get_nowait() for _ in range(2)] == [
            Frames(frames=(), lost=1),
            Frames(frames=(), lost=2),
        ]
        await connection.close()
        assert connection.events.get_nowait() is None


async def test_a_failure_is_raised_with_its_remedy(path: Path) -> None:
    def answer(request: Request) -> list[Response]:
        return [Failed(to=request.id, message="no", remedy="try later")]

    async with stub_agent(path, answer) as agent:
        connection = await agent.dial()
        with pytest.raises(PodwireError) as caught:
            await connection.call(Hold(id=0, on=True))
        assert (caught.value.message, caught.value.remedy) == ("no", "try later")
        await connection.close()


async def test_an_agent_that_goes_away_fails_all_calls_and_ends_the_events(path: Path) -> None:
    async with stub_agent(path) as agent:
        connection = await agent.dial("the agent of node1")
        calls = [
            asyncio.create_task(connection.call(request))
            for request in (Fire(id=0), Ask(id=0, questions=()))
        ]
        await until(lambda: len(agent.requests) == 2)
        agent.hang_up()
        for call in calls:
            with pytest.raises(AgentAwayError, match="the agent of node1 went away"):
                await call
        with pytest.raises(AgentAwayError):
            await connection.call(Fire(id=0))
        assert await connection.events.get() is None
        await connection.close()


async def test_an_answer_of_another_kind_is_an_error(path: Path) -> None:
    async with stub_agent(path, lambda one: [Fired(to=one.id, results=())]) as agent:
        connection = await agent.dial()
        with pytest.raises(PodwireError, match="Hold"):
            await connection.call(Hold(id=0, on=True))
        await connection.close()


async def test_an_answer_to_a_call_that_was_given_up_is_dropped(path: Path) -> None:
    held: list[Request] = []

    def answer(request: Request) -> list[Response]:
        if isinstance(request, Fire):
            held.append(request)
            return []
        return [Fired(to=held[0].id, results=()), Done(to=request.id)]

    async with stub_agent(path, answer) as agent:
        connection = await agent.dial()
        call = asyncio.create_task(connection.call(Fire(id=0)))
        await until(lambda: bool(held))
        call.cancel()
        await connection.call(Hold(id=0, on=True))
        await connection.close()
        await until(lambda: agent.open == 0)


async def test_closing_ends_the_agents_side(path: Path) -> None:
    async with stub_agent(path) as agent:
        connection = await agent.dial()
        assert agent.open == 1
        await connection.close()
        await until(lambda: agent.open == 0)


@pytest.mark.parametrize(
    ("greeting", "error", "text"),
    [
        (b"", AgentAwayError, "does not answer"),
        (pack(welcome(version=VERSION + 1)), PodwireError, f"speaks version {VERSION + 1}"),
        (pack(Failed(to=0, message="user 7 may not ask")), PodwireError, "user 7 may not ask"),
        (pack(Done(to=1)), PodwireError, "does not greet"),
        (b"\xff\xff\xff\xff", AgentAwayError, "went away"),
        (struct.pack("!I", 3) + b"abc", PodwireError, "not an answer"),
        (
            struct.pack("!I", 13) + msgspec.msgpack.encode({"type": "New"}).ljust(13, b"\0"),
            PodwireError,
            "same version",
        ),
    ],
)
async def test_who_does_not_greet_as_an_agent_is_refused(
    path: Path, greeting: bytes, error: type[PodwireError], text: str
) -> None:
    async with stub_agent(path, greeting=greeting) as agent:
        with pytest.raises(error) as caught:
            await agent.dial(welcome_s=0.05)
        assert text in str(caught.value)
        await until(lambda: agent.open == 0)
