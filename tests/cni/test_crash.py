"""kill -9 of the agent or the executable in the middle of ADD and DEL, at random points.

Afterwards the runtime does what runtimes do: it tries again, and runs GC. Then no address may be
held twice or lost, and no veth left.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cni.conftest import Node

pytestmark = [pytest.mark.root, pytest.mark.slow]

CONF = {"cniVersion": "1.1.0", "name": "podwire", "type": "podwire"}
#: Of the agent fewer, which takes a moment to start.
ROUNDS = {"agent": 60, "executable": 200}
#: A little longer than an ADD takes, so that kills fall before, into and after it; and, now and
#: then, longer than the deletion of a veth pair in the background.
SPANS_S = (0.004, 0.004, 0.004, 0.03)


def spawn(node: Node, command: str, container: str, netns: str) -> subprocess.Popen[bytes]:
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": netns,
        "PODWIRE_CNI_SOCKET": str(node.socket),
    }
    conf = node.directory / "conf.json"
    conf.write_text(json.dumps(CONF))
    with conf.open() as stdin:
        return subprocess.Popen(
            [node.executable], env=environment, stdin=stdin, stdout=subprocess.PIPE
        )


def wait_a_moment(rng: random.Random) -> None:
    deadline = time.monotonic() + rng.uniform(0, rng.choice(SPANS_S))
    while time.monotonic() < deadline:
        pass


def address_in(netns: str) -> str | None:
    command = ["ip", "-n", Path(netns).name, "-j", "addr", "show", "dev", "eth0"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode != 0:
        return None
    infos: list[dict[str, Any]] = json.loads(done.stdout)[0]["addr_info"]
    return next((info["local"] for info in infos if info["family"] == "inet"), None)


def check_all(node: Node, pods: dict[str, str], present: set[str]) -> None:
    """The runtime's GC, then: who should be there is, once each, and nobody else."""
    valid = [{"containerID": container, "ifname": "eth0"} for container in present]
    answer = node.cni("GC", config={**CONF, "cni.dev/valid-attachments": valid})
    assert answer.status == 0, answer
    node.restart()  # which finishes what DEL does in the background
    inside = {container: address_in(netns) for container, netns in pods.items()}
    held = {container: ip for container, ip in inside.items() if ip is not None}
    assert set(held) == present
    assert len(set(held.values())) == len(held)
    assert len(node.links()) == len(held)


@pytest.mark.parametrize("victim", ["agent", "executable"])
def test_killed_at_random_points(
    make_node: Callable[..., Node], make_pod: Callable[[], str], victim: str
) -> None:
    rng = random.Random(victim)
    node = make_node("10.244.1.0/27")  # 29 addresses: a few lost ones would show
    pods = {f"c{number}": make_pod() for number in range(6)}
    present: set[str] = set()
    for number in range(ROUNDS[victim]):
        container, netns = rng.choice(list(pods.items()))
        command = "DEL" if container in present else "ADD"
        call = spawn(node, command, container, netns)
        wait_a_moment(rng)
        if victim == "agent":
            node.end(kill=True)
        else:
            call.kill()
        call.communicate(timeout=60)
        if victim == "agent":
            node.start()
        if command == "ADD":
            result = node.add(container, netns)
            assert result["ips"][0]["address"].split("/")[0] == address_in(netns)
            present.add(container)
        else:
            node.delete(container, netns)
            present.discard(container)
        if number % 20 == 19:
            check_all(node, pods, present)
    check_all(node, pods, present)
    # Every address can still be had: none is held by something that nobody knows of.
    free = 29 - len(present)
    for number in range(free):
        node.add(f"last{number}", make_pod())
    assert node.cni("ADD", "one-too-many", make_pod()).error[0] == 100


def test_a_runtime_that_never_retries(node: Node, make_pod: Callable[[], str]) -> None:
    """The agent dies in every ADD, nobody asks again: at the next start nothing is left."""
    rng = random.Random(7)
    for number in range(20):
        call = spawn(node, "ADD", f"c{number}", make_pod())
        wait_a_moment(rng)
        node.end(kill=True)
        call.communicate(timeout=60)
        node.start()
    valid: list[dict[str, str]] = []
    assert node.cni("GC", config={**CONF, "cni.dev/valid-attachments": valid}).status == 0
    node.restart()
    assert node.links() == []
