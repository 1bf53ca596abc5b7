"""A trace from its asker's side: which agents are asked what, in which order.

What lives here: the sequence, and the evidence that comes of it. What does not: the way to an
agent (`dial`), its failures (`watcher`), what the sightings mean (`build`), words for people.

    dial      source's agent ─┬─ target's agent (or that of the node whose address it is)
    prepare   ────────────────┤                    whom it will be from: what is watched for
    observe   ────────────────┴─────────────────   answered when every tap is open
    fire      ───────────────                      answered when the last probe has ended
   (give up   ───────────────                      it was dropped, and no answer came soon after)
    stop      ────────────────┬─────────────────   all that was seen has come
    ask       ────────────────┴─────────────────   what the kernels decide for what was seen

A probe that has been answered was seen everywhere before that; one that was not has been waited
for, if not for long once a kernel has told that it dropped it. So nothing is waited for after it
has ended.

Only the source's agent is needed. Another that is away, or goes away, makes the trace poorer: that
becomes a fact of its node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import NamedTuple, TypedDict, TypeVar

import msgspec

from podwire.model.probe import Probe, ProbeMatch
from podwire.model.state import IPNetwork
from podwire.plan.wiring import routed
from podwire.trace.build import build
from podwire.trace.evidence import Answer, Evidence, Facts, NodeFacts, moved
from podwire.trace.model import Endpoint, Place, Trace
from podwire.trace.questions import questions
from podwire.trace.reasons import is_final
from podwire.trace.records import Drop, Frame, NftStep, ProbeResult, Question
from podwire.trace.user_tunnel import TunnelCount
from podwire.trace.watcher import Dial, Watcher, together
from podwire.trace.wire import Ask, Drops, Fire, GiveUp, Observe, Prepare, Prepared, Stop

At = TypeVar("At", Frame, Drop, NftStep, Question)

#: The agents of one machine tell of one drop with times that differ by no more than this.
_SAME_DROP_NS = 1_000_000
#: Where a copy of a probe was dropped, its answer comes in less than this.
_COPY_S = 0.08


class Traced(NamedTuple):
    """A trace, and all that it was made of."""

    trace: Trace
    evidence: Evidence


async def run(
    dial: Dial,
    facts: Facts,
    source: Endpoint,
    target: Endpoint,
    probe: Probe,
    notes: Sequence[str] = (),
) -> Traced:
    """Send `probe` from `source` to `target`, and find out what becomes of it.

    `dial` gives a connection to the agent of a node; to close it is the caller's affair. `notes`
    go before those of the trace itself. Raises AgentAwayError without the source's agent,
    PodwireError where that can't send or watch.
    """
    started = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    watchers = _watchers(facts, source, target)
    sender = watchers[0]
    await together(*(one.dial(dial) for one in watchers))
    facts = _with_networks(facts, watchers)
    pod = source.name if source.kind == "pod" else ""
    prepared = await sender.ask(lambda agent: agent.call(Prepare(id=0, probe=probe, pod=pod)))
    assert prepared is not None  # noqa: S101  the sender is needed: its failures are raised
    source = msgspec.structs.replace(source, ip=prepared.source or source.ip)
    match = _match(probe, prepared, source, facts, watchers)
    await together(*(_observe(one, match) for one in watchers))
    results = await _fire(sender, watchers, probe, prepared)
    await together(*(_stop(one) for one in watchers))
    evidence = Evidence(
        started=started,
        source=source,
        target=target,
        probe=probe,
        match=match,
        facts=_with_away(facts, watchers),
        results=results,
        **_seen(watchers, notes),
    )
    answers = await _answers(watchers, questions(evidence))
    evidence = msgspec.structs.replace(evidence, answers=answers)
    return Traced(build(evidence), evidence)


# --- who ----------------------------------------------------------------------------------------


def _watchers(facts: Facts, source: Endpoint, target: Endpoint) -> list[Watcher]:
    """The source's agent first, then that of the target's node, where there is one.

    An address that nobody has is looked for by the node whose subnet it is in.
    """
    pods: dict[str, list[str]] = {source.node: []}
    owner = facts.node_at(target.ip) or facts.owner(target.ip)
    if node := target.node or (owner.name if owner is not None else ""):
        pods.setdefault(node, [])
    for end in (source, target):
        if end.kind == "pod" and end.name not in pods[end.node]:
            pods[end.node].append(end.name)
    return [Watcher(node, tuple(names), needed=node == source.node) for node, names in pods.items()]


def _with_networks(facts: Facts, watchers: Sequence[Watcher]) -> Facts:
    told = {net for one in watchers if one.welcome is not None for net in one.welcome.network}
    return msgspec.structs.replace(facts, network=tuple(sorted({*facts.network, *told})))


def _with_away(facts: Facts, watchers: Sequence[Watcher]) -> Facts:
    away = {one.node: one.away for one in watchers}
    return msgspec.structs.replace(
        facts,
        nodes=tuple(
            msgspec.structs.replace(node, away=away.get(node.name, "")) for node in facts.nodes
        ),
    )


def _match(
    probe: Probe,
    prepared: Prepared,
    source: Endpoint,
    facts: Facts,
    watchers: Sequence[Watcher],
) -> ProbeMatch:
    """What is watched for: the probe's packets, and who asks for whose MAC on their way."""
    greetings = [one.welcome for one in watchers if one.welcome is not None]
    neighbors = {source.ip, probe.target}
    if any(one.wiring == "routed" for one in greetings):
        neighbors |= {str(routed.gateway(version)) for version in (4, 6)}
    for watcher in watchers:
        node = facts.node(watcher.node)
        neighbors.update(_next_hops(node) if node is not None else ())
    ports = {one.tunnel_port for one in greetings} - {0}
    bare = {one.bare_port for one in greetings} - {0}
    return ProbeMatch(
        protocol=probe.protocol,
        source=source.ip,
        target=probe.target,
        ident=prepared.ident,
        port=probe.port,
        translated=not facts.in_network(probe.target),
        neighbors=tuple(sorted(neighbors - {""})),
        tunnel_ports=tuple(sorted(ports)),
        bare_ports=tuple(sorted(bare)),
    )


def _next_hops(node: NodeFacts) -> Iterator[str]:
    """The addresses of a node that others, and its pods, may ask for the MAC of."""
    yield from node.ips
    found: dict[int, IPNetwork] = {}
    for subnet in map(ip_network, node.subnets):
        if subnet.prefixlen < subnet.max_prefixlen:
            found.setdefault(subnet.version, subnet)
    for subnet in found.values():
        # The VTEP's, and the bridge's.
        yield str(subnet.network_address)
        yield str(subnet.network_address + 1)


# --- what ---------------------------------------------------------------------------------------


async def _observe(watcher: Watcher, match: ProbeMatch) -> None:
    request = Observe(id=0, match=match, pods=watcher.pods)
    watcher.observing = await watcher.ask(lambda agent: agent.call(request))


async def _fire(
    sender: Watcher, watchers: Sequence[Watcher], probe: Probe, prepared: Prepared
) -> tuple[ProbeResult, ...]:
    if prepared.refused is not None:
        return (prepared.refused,)
    hopeless = asyncio.create_task(_hopeless(sender, watchers)) if probe.count == 1 else None
    try:
        fired = await sender.ask(
            lambda agent: agent.call(Fire(id=0)), beyond_s=probe.count * probe.timeout_s
        )
    finally:
        if hopeless is not None:
            hopeless.cancel()
            await asyncio.wait([hopeless])
    return fired.results if fired is not None else ()


async def _hopeless(sender: Watcher, watchers: Sequence[Watcher]) -> None:
    """Have the sender give up, some time after a kernel dropped the probe or its answer for good:
    what it dropped may have been a copy."""
    dropped = asyncio.Event()

    def note(drops: Drops) -> None:
        if any(is_final(one.reason, one.location) for one in drops.drops):
            dropped.set()

    for one in watchers:
        one.on_drops(note)
    await dropped.wait()
    await asyncio.sleep(_COPY_S)
    await sender.ask(lambda agent: agent.call(GiveUp(id=0)))


async def _stop(watcher: Watcher) -> None:
    if watcher.observing is not None:
        stopped = await watcher.ask(lambda agent: agent.call(Stop(id=0)))
        watcher.tunnel = stopped.tunnel if stopped is not None else None
    watcher.collect()


async def _answers(watchers: Sequence[Watcher], asked: Sequence[Question]) -> tuple[Answer, ...]:
    """What the kernels decide, each asked for its own places."""
    answers: dict[int, Answer] = {}

    async def ask(watcher: Watcher, offset: int, count: int) -> None:
        mine = [n for n, one in enumerate(asked) if offset <= one.place < offset + count]
        if not mine:
            return
        local = tuple(_at(asked[n], asked[n].place - offset) for n in mine)
        told = await watcher.ask(lambda agent: agent.call(Ask(id=0, questions=local)))
        if told is not None:
            for n, decisions in zip(mine, told.decisions, strict=False):
                answers[n] = Answer(asked[n], decisions)

    await together(*(ask(*one) for one in _numbered(watchers)))
    return tuple(answers[n] for n in sorted(answers))


def _numbered(watchers: Sequence[Watcher]) -> list[tuple[Watcher, int, int]]:
    """Each with the number of its first place among all, and how many it has."""
    found, offset = [], 0
    for one in watchers:
        count = len(one.observing.places) if one.observing is not None else 0
        found.append((one, offset, count))
        offset += count
    return found


class _Seen(TypedDict):
    places: tuple[Place, ...]
    frames: tuple[Frame, ...]
    drops: tuple[Drop, ...]
    steps: tuple[NftStep, ...]
    lost: dict[str, int]
    encrypted: bool
    tunnels: dict[str, TunnelCount]
    notes: tuple[str, ...]


def _seen(watchers: Sequence[Watcher], said: Sequence[str]) -> _Seen:
    """What all agents saw, with their places one after the other."""
    places: list[Place] = []
    frames: list[Frame] = []
    drops: list[Drop] = []
    steps: list[NftStep] = []
    notes = [*said]
    for one, offset, _ in _numbered(watchers):
        if one.observing is not None:
            places += moved(one.observing.places, offset)
            notes += [f"{one.node}: {note}" for note in one.observing.notes]
        frames += [_at(frame, frame.place + offset) for frame in one.frames]
        steps += [_at(step, step.place + offset) for step in one.steps]
        drops += [
            drop if drop.place is None else _at(drop, drop.place + offset) for drop in one.drops
        ]
        if one.steps_lost:
            notes.append(f"nft steps of {one.node} found no room: rules there may be missing")
        if one.welcome is not None and one.welcome.held:
            notes.append(
                f"the agent of {one.node} is held: it mends nothing until"
                f" `podwire agent resume --node {one.node}`"
            )
    return _Seen(
        places=tuple(places),
        frames=tuple(frames),
        drops=_once(drops),
        steps=tuple(steps),
        lost={one.node: one.lost for one in watchers if one.lost},
        encrypted=any(one.welcome is not None and one.welcome.encrypted for one in watchers),
        tunnels={one.node: one.tunnel for one in watchers if one.tunnel is not None},
        notes=tuple(notes),
    )


def _at(one: At, place: int) -> At:
    return msgspec.structs.replace(one, place=place)


def _once(drops: Sequence[Drop]) -> tuple[Drop, ...]:
    """Each drop once: of a machine with several nodes (a lab) every agent tells of all of them,
    and only the one whose place it was says where."""
    kept: list[Drop] = []
    for drop in sorted(drops, key=lambda one: one.place is None):
        if drop.place is not None or not any(_same(drop, other) for other in kept):
            kept.append(drop)
    return tuple(sorted(kept, key=lambda one: one.time_ns))


def _same(one: Drop, other: Drop) -> bool:
    alike = (one.reason, one.location, one.interface, one.data) == (
        *(other.reason, other.location, other.interface, other.data),
    )
    return alike and abs(one.time_ns - other.time_ns) <= _SAME_DROP_NS
