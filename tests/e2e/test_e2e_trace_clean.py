"""A trace leaves nothing behind, whenever and however it is ended, and disturbs no other.

`PODWIRE_TRACE_MOMENTS=100 script/test -k trace_clean` interrupts so many traces of each kind.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from podwire.lab import Lab, LabPod
from podwire.lab.places import Place
from podwire.trace.model import Outcome

from .holdings import agent, held, is_asked, is_loaded, pid_of, programs
from .tracing import Tracer, left, nothing_left
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

MOMENTS = int(os.environ.get("PODWIRE_TRACE_MOMENTS", "4"))
#: What a Python process may come to have for good while it runs.
GROWTH_KB = 6144


@pytest.fixture(scope="module")
def lab(make_lab: Callable[[int], Lab]) -> Lab:
    return make_lab(2)


@pytest.fixture(scope="module")
def pods(lab: Lab) -> dict[str, LabPod]:
    found = {"pod1": lab.run("pod1", node="node1"), "pod2": lab.run("pod2", node="node2")}
    lab.wait_ready()
    assert found["pod1"].ping(found["pod2"]).lost == 0
    return found


@pytest.fixture(scope="module")
def places(lab: Lab, pods: dict[str, LabPod]) -> list[Place]:
    return [lab.node("node1"), lab.node("node2"), pods["pod1"], pods["pod2"]]


@pytest.fixture(scope="module")
def tracer(lab: Lab, pods: dict[str, LabPod]) -> Tracer:
    return Tracer(lab)


@pytest.fixture(scope="module")
def unused(lab: Lab) -> str:
    """An address of node2 that nobody has: a probe to it waits for as long as it may."""
    subnet = ip_address(lab.node_object("node2")["spec"]["podCIDR"].partition("/")[0])
    return str(subnet + 200)


@contextmanager
def nothing_more(lab: Lab, places: list[Place]) -> Iterator[None]:
    """Nothing is held that was not held before, as soon as all has been given back."""
    until(lambda: not is_asked(lab), "nobody traces")
    nothing_left(*places)
    before = held(lab, places)

    yield
    try:
        until(lambda: held(lab, places) <= before, "all is as it was before")
    except AssertionError:
        pytest.fail(f"left behind: {held(lab, places) - before}")


def is_complete(tracer: Tracer, source: str, target: str) -> bool:
    trace = tracer.trace(source, target)
    (only,) = trace.rounds
    assert (only.outcome, trace.notes) == (Outcome.REPLIED, ())
    assert only.reply is not None
    return (len(only.request.hops), len(only.reply.hops)) == (10, 10)


def test_an_agent_that_nobody_asks_watches_nothing(lab: Lab, places: list[Place]) -> None:
    assert left(*places) == {}
    assert [programs(pid_of(lab, node.name)) for node in lab.nodes] == [set(), set()]


# --- interrupted --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("answered", [True, False], ids=["answered", "unanswered"])
def test_ended_at_any_moment_it_leaves_nothing(
    lab: Lab,
    tracer: Tracer,
    places: list[Place],
    unused: str,
    number: signal.Signals,
    answered: bool,
) -> None:
    started = time.monotonic()
    assert is_complete(tracer, "pod1", "pod2")
    life_s = time.monotonic() - started
    arguments = ["pod1", "pod2"] if answered else ["pod1", unused, "--timeout", "5s"]
    chance = random.Random(f"{number.name} {answered}")
    with nothing_more(lab, places):
        for moment in range(MOMENTS):
            with tracer.start(*arguments) as process:
                try:
                    process.wait((moment + chance.random()) / MOMENTS * life_s)
                except subprocess.TimeoutExpired:
                    process.send_signal(number)
                process.communicate(timeout=60)
    assert is_complete(tracer, "pod1", "pod2")


@pytest.fixture
def waiting(tracer: Tracer, places: list[Place], unused: str) -> Iterator[subprocess.Popen[bytes]]:
    """A trace for whose probe everybody watches, and nobody answers."""
    nothing_left(*places)
    with tracer.start("pod1", unused, "--timeout", "20s") as process:
        try:
            until(lambda: len(left(*places)) == 6, "both nodes and the pod are watched")
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_an_agent_killed_meanwhile_leaves_nothing(
    lab: Lab,
    tracer: Tracer,
    places: list[Place],
    waiting: subprocess.Popen[bytes],
    node: str,
) -> None:
    doomed = pid_of(lab, node)
    attached = until(lambda: programs(doomed), "its program is attached")
    os.kill(doomed, signal.SIGKILL)
    until(lambda: not any(map(is_loaded, attached)), "the kernel has dropped the program")
    if node == "node1":
        _, said = waiting.communicate(timeout=60)
        assert (waiting.returncode, b"the agent of node1 went away" in said) == (1, True), said
    else:
        waiting.send_signal(signal.SIGINT)
        waiting.wait(60)
    nothing_left(*places)
    until(lambda: lab.node(node).process("agent").pid not in (None, doomed), "a new agent runs")
    until(lambda: tracer.run("pod1", "pod2").code == 0, "it traces again")


# --- many ---------------------------------------------------------------------------------------


def test_traces_at_the_same_time_do_not_disturb_each_other(
    lab: Lab, tracer: Tracer, places: list[Place]
) -> None:
    ways = [("pod1", "pod2"), ("pod1", "pod2"), ("pod2", "pod1"), ("pod1", "pod2")]
    with nothing_more(lab, places), ThreadPoolExecutor(len(ways)) as operators:
        assert all(operators.map(lambda way: is_complete(tracer, *way), ways))


def test_many_traces_take_nothing_for_good(
    lab: Lab, tracer: Tracer, places: list[Place], pods: dict[str, LabPod]
) -> None:
    agents = [pid_of(lab, node.name) for node in lab.nodes]

    def traces(count: int) -> None:
        with ThreadPoolExecutor(4) as operators:
            assert all(operators.map(lambda _: is_complete(tracer, "pod1", "pod2"), range(count)))

    traces(6)  # By then everything is there that is made when it is first needed.
    nothing_left(*places)
    # asyncio's pool for what blocks grows when it is first busy, and stays.
    pool = min(32, (os.cpu_count() or 1) + 4)
    threads = [agent(pid).threads + pool for pid in agents]
    memory = [resident_kb(pid) for pid in agents]
    with nothing_more(lab, places):
        traces(12)
    until(
        lambda: all(
            agent(pid).threads <= before for pid, before in zip(agents, threads, strict=True)
        ),
        "no thread is left",
    )
    grown = [resident_kb(pid) - before for pid, before in zip(agents, memory, strict=True)]
    assert all(one < GROWTH_KB for one in grown), grown


def resident_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])
