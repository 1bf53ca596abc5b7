"""A trace from its asker's side, against agents that replay what a packet's walk showed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from podwire.errors import AgentAwayError, PodwireError
from podwire.model.probe import Probe
from podwire.trace import session
from podwire.trace.connection import Connection
from podwire.trace.model import Cause, Decision, Endpoint, Outcome, Place
from podwire.trace.records import Drop, Frame, ProbeResult
from podwire.trace.wire import (
    Answers,
    Ask,
    Done,
    Drops,
    Failed,
    Fire,
    Fired,
    Frames,
    GiveUp,
    NftSteps,
    Observe,
    Observing,
    Prepare,
    Prepared,
    Request,
    Response,
    Stop,
    Stopped,
    pack,
)

from . import scene
from .agent_stub import Answer, StubAgent, stub_agent, welcome
from .scene import IDENT, NODE1, NODE2, POD1, POD2, Cluster, Step, frames

CLUSTER = Cluster()
SOURCE, TARGET = CLUSTER.endpoint(POD1), CLUSTER.endpoint(POD2)
#: The places that each agent has, in the numbers of the scene.
THEIRS = {"node1": (NODE1, POD1), "node2": (NODE2, POD2)}
REPLIED = ProbeResult(number=1, outcome="replied", rtt_us=200.0)
TIMEOUT = ProbeResult(number=1, outcome="timeout")


def walk() -> list[Step]:
    """There and back."""
    ends = SOURCE.ip, TARGET.ip
    request, reply = CLUSTER.request(*ends), CLUSTER.reply(*ends)
    return [*CLUSTER.pod_to_pod(POD1, POD2, request), *CLUSTER.pod_to_pod(POD2, POD1, reply)]


def places(node: str) -> tuple[Place, ...]:
    """An agent's places, numbered by itself."""
    mine = THEIRS[node]

    def local(place: Place) -> Place:
        interfaces = [
            msgspec.structs.replace(
                one, peer_place=mine.index(one.peer_place) if one.peer_place in mine else None
            )
            for one in place.interfaces
        ]
        return msgspec.structs.replace(place, interfaces=tuple(interfaces))

    return tuple(local(CLUSTER.places[number]) for number in mine)


def agent(
    node: str, seen: Iterable[Frame], result: ProbeResult = REPLIED, *more: Response
) -> Answer:
    """What the agent of `node` answers when those frames cross the cluster."""
    mine = THEIRS[node]
    local = tuple(
        msgspec.structs.replace(frame, place=mine.index(frame.place))
        for frame in seen
        if frame.place in mine
    )

    def answer(request: Request) -> list[Response]:
        match request:
            case Prepare():
                return [Prepared(to=request.id, source=SOURCE.ip, ident=IDENT)]
            case Observe():
                return [Observing(to=request.id, places=places(node), notes=("no drop reasons",))]
            case Fire():
                return [Fired(to=request.id, results=(result,))]
            case Stop():
                return [Frames(frames=local), *more, Stopped(to=request.id)]
            case Ask(questions=questions):
                decisions = [(Decision(kind="route", text=f"{node} {q.place}"),) for q in questions]
                return [Answers(to=request.id, decisions=tuple(decisions))]
            case _:
                return [Failed(to=request.id, message="unexpected")]

    return answer


class Agents:
    """Stub agents by node, and the way to them."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self.by_node: dict[str, StubAgent] = {}

    async def add(self, node: str, answer: Answer, **about: object) -> StubAgent:
        greeting = pack(welcome(node, tunnel_port=8472, network=("10.244.0.0/16",), **about))
        path = self._directory / f"{node}.sock"
        stub = await self._stack.enter_async_context(stub_agent(path, answer, greeting))
        self.by_node[node] = stub
        return stub

    async def dial(self, node: str) -> Connection:
        if node not in self.by_node:
            raise AgentAwayError(f"the agent of {node} does not run")
        connection = await self.by_node[node].dial(f"the agent of {node}")
        self._stack.push_async_callback(connection.close)
        return connection

    async def trace(self, target: Endpoint = TARGET) -> session.Traced:
        probe = Probe(target=target.ip, timeout_s=0.1)
        return await session.run(self.dial, CLUSTER.facts, SOURCE, target, probe)

    def asked(self, node: str) -> list[str]:
        return [type(request).__name__ for request in self.by_node[node].requests]


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[Agents]:
    async with AsyncExitStack() as stack:
        yield Agents(tmp_path, stack)


async def both(agents: Agents) -> None:
    seen = frames(walk())
    for node in THEIRS:
        await agents.add(node, agent(node, seen))


async def test_what_two_agents_saw_becomes_one_trace(agents: Agents) -> None:
    await both(agents)
    trace, evidence = await agents.trace()
    (one,) = trace.rounds
    assert one.reply is not None
    assert (len(one.request.hops), len(one.reply.hops)) == (10, 10)
    assert [place.name for place in trace.places] == [
        "node1",
        "pod:default/pod1",
        "node2",
        "pod:default/pod2",
    ]
    ports = {one.name: one.peer_place for place in trace.places for one in place.interfaces}
    assert (ports["vethpod1"], ports["vethpod2"]) == (1, 3)
    assert trace.ok
    assert "node1: no drop reasons" in trace.notes
    assert evidence.match.neighbors == tuple(
        sorted(
            {
                *("10.244.1.0", "10.244.1.1", "10.244.1.2", "172.18.0.11"),
                *("10.244.2.0", "10.244.2.1", "10.244.2.2", "172.18.0.12"),
            }
        )
    )
    assert not evidence.match.translated


async def test_each_agent_is_asked_for_what_it_knows_in_this_order(agents: Agents) -> None:
    await both(agents)
    trace, _ = await agents.trace()
    assert agents.asked("node1") == ["Prepare", "Observe", "Fire", "Stop", "Ask"]
    assert agents.asked("node2") == ["Observe", "Stop", "Ask"]
    said = {
        (trace.places[hop.place].node, decision.text)
        for hop in trace.rounds[0].request.hops
        for decision in hop.decisions
    }
    assert said == {(node, f"{node} {place}") for node in THEIRS for place in (0, 1)}
    observes = [one for one in agents.by_node["node2"].requests if isinstance(one, Observe)]
    assert [one.pods for one in observes] == [("default/pod2",)]


async def test_an_agent_that_is_away_makes_the_trace_poorer(agents: Agents) -> None:
    await agents.add("node1", agent("node1", frames(walk())))
    trace, evidence = await agents.trace()
    (one,) = trace.rounds
    assert one.outcome is Outcome.REPLIED
    assert {trace.places[hop.place].node for hop in one.request.hops} == {"node1"}
    node2 = evidence.facts.node("node2")
    assert node2 is not None
    assert node2.away == "the agent of node2 does not run"
    assert any("node2" in note for note in trace.notes)


async def test_an_agent_that_can_not_watch_is_away(agents: Agents) -> None:
    seen = frames(walk())
    await agents.add("node1", agent("node1", seen))
    await agents.add("node2", lambda one: [Failed(to=one.id, message="no packet sockets here")])
    _, evidence = await agents.trace()
    node2 = evidence.facts.node("node2")
    assert node2 is not None
    assert node2.away == "no packet sockets here"
    assert agents.asked("node2") == ["Observe"]


async def test_an_agent_that_goes_away_meanwhile_is_told(agents: Agents) -> None:
    seen = frames(walk()[:5])
    await agents.add("node1", agent("node1", seen, TIMEOUT))
    usual = agent("node2", seen)

    def leave(request: Request) -> list[Response]:
        if isinstance(request, Stop):
            agents.by_node["node2"].hang_up()
            return []
        return usual(request)

    await agents.add("node2", leave)
    trace, evidence = await agents.trace()
    node2 = evidence.facts.node("node2")
    assert node2 is not None
    assert "went away" in node2.away
    assert len(trace.rounds[0].request.hops) == 5


async def test_without_the_sources_agent_there_is_no_trace(agents: Agents) -> None:
    await agents.add("node2", agent("node2", ()))
    with pytest.raises(AgentAwayError, match="the agent of node1 does not run"):
        await agents.trace()


async def test_what_the_source_can_not_do_is_raised(agents: Agents) -> None:
    await both(agents)
    await agents.add("node1", lambda one: [Failed(to=one.id, message="pod is not here")])
    with pytest.raises(PodwireError, match="pod is not here"):
        await agents.trace()


async def test_a_stack_that_refuses_is_not_fired_but_asked_why(agents: Agents) -> None:
    usual = agent("node1", ())
    refused = ProbeResult(number=1, outcome="error", errno=101, text="network is unreachable")

    def refuse(request: Request) -> list[Response]:
        if isinstance(request, Prepare):
            return [Prepared(to=request.id, source="", ident=0, refused=refused)]
        return usual(request)

    await agents.add("node1", refuse)
    await agents.add("node2", agent("node2", ()))
    trace, evidence = await agents.trace()
    assert agents.asked("node1") == ["Prepare", "Observe", "Stop", "Ask"]
    assert evidence.results == (refused,)
    assert evidence.match.source == SOURCE.ip
    (one,) = trace.rounds
    assert one.outcome is Outcome.DROPPED
    assert one.finding is not None
    assert one.finding.cause is Cause.NO_ROUTE


async def test_an_address_in_nobodys_use_is_looked_for_by_its_subnets_node(agents: Agents) -> None:
    await agents.add("node1", agent("node1", (), TIMEOUT))
    await agents.add("node2", agent("node2", ()))
    await agents.trace(Endpoint(kind="address", ip="10.244.2.99"))
    assert agents.asked("node2") == ["Observe", "Stop"]
    observes = [one for one in agents.by_node["node2"].requests if isinstance(one, Observe)]
    assert [one.pods for one in observes] == [()]


async def test_what_is_outside_may_be_translated(agents: Agents) -> None:
    await agents.add("node1", agent("node1", (), TIMEOUT))
    _, evidence = await agents.trace(Endpoint(kind="address", ip="192.0.2.7"))
    assert evidence.match.translated


def drop(place: int | None, time_ns: int, interface: str = "eth0") -> Drop:
    return Drop(
        place=place,
        ifindex=2,
        interface=interface,
        time_ns=time_ns,
        reason="IP_RPFILTER",
        location="ip_rcv_finish",
        data=b"packet",
    )


async def test_a_drop_that_every_agent_of_a_machine_tells_of_counts_once(agents: Agents) -> None:
    now = scene.START_NS
    told = {
        "node1": (drop(0, now), drop(None, now + 900_000_000), drop(None, now, "eth9")),
        "node2": (drop(None, now + 40_000), drop(1, now + 900_030_000), drop(None, now, "eth9")),
    }
    for node, drops in told.items():
        await agents.add(node, agent(node, (), TIMEOUT, Drops(drops=drops)))
    _, evidence = await agents.trace()
    assert sorted((one.place if one.place is not None else -1) for one in evidence.drops) == [
        *(-1, 0, 3)
    ]


async def test_what_was_dropped_is_not_waited_for(agents: Agents) -> None:
    usual = agent("node1", ())

    def wait(request: Request) -> list[Response]:
        match request:
            case Fire(id=number):
                given_up = ProbeResult(number=1, outcome="timeout", given_up_s=0.1)
                pending.append(Fired(to=number, results=(given_up,)))
                return [Drops(drops=(drop(0, scene.START_NS),))]
            case GiveUp():
                return [*pending, Done(to=request.id)]
            case _:
                return usual(request)

    pending: list[Response] = []
    await agents.add("node1", wait)
    await agents.add("node2", agent("node2", ()))
    trace, _ = await agents.trace()
    finding = trace.rounds[0].finding
    assert finding is not None
    assert "the sender waited 0.1 s for an answer, as it was dropped" in finding.evidence


async def test_what_was_lost_and_held_agents_are_told(agents: Agents) -> None:
    seen = frames(walk())
    lost = Frames(frames=(), lost=7), NftSteps(steps=(), lost=1)
    await agents.add("node1", agent("node1", seen, REPLIED, *lost))
    await agents.add("node2", agent("node2", seen), held=True)
    trace, evidence = await agents.trace()
    assert evidence.lost == {"node1": 7}
    assert any("the agent of node2 is held" in note for note in trace.notes)
    assert "nft steps of node1 found no room: rules there may be missing" in trace.notes
