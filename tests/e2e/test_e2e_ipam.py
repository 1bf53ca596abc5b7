"""Addresses of blocks and ranges in labs with too few: used up, borrowed, given, released."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_network
from typing import Any

import pytest

from podwire.cluster.kube import NODES, PODS
from podwire.cluster.kube.resources import IP_POOLS, IPAM_BLOCKS, IPAM_RANGES
from podwire.lab import Lab, processes

from ..conftest import needs_kubectl
from .commands import Command
from .waiting import DEADLINE_S, until

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Two blocks of eight addresses, of which seven are for pods.
BLOCKS = {"profile": "calico", "network": "172.31.0.0/28", "block_len": 29}
#: Sixteen slots of sixteen addresses.
RANGES = {"profile": "weave", "network": "10.32.0.0/24"}

Objects = list[dict[str, Any]]


@pytest.fixture(scope="module")
def calico(make_lab: Callable[..., Lab]) -> Lab:
    """Two nodes, which have a block each, and a third one, which has none."""
    return make_lab(3, **BLOCKS)


@pytest.fixture(scope="module")
def weave(make_lab: Callable[..., Lab]) -> Lab:
    """Two nodes, of which the first has all slots but one."""
    lab = make_lab(2, **RANGES)
    taken = {one["first"] for one in ranges(lab)}
    free = (f"10.32.0.{number}" for number in range(0, 256, 16) if f"10.32.0.{number}" not in taken)
    Command(lab.name).ok("apply", "-f", "-", stdin="\n---\n".join(map(slot_of_node1, free)))
    return lab


@pytest.fixture(autouse=True)
def emptied(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: no pod, and nobody has an address of any block."""
    yield
    lab = request.getfixturevalue("calico" if "calico" in request.fixturenames else "weave")
    Command(lab.name).ok("delete", "pods", "--all", "--grace-period", "0")
    until(lambda: not listed(lab, PODS), "pods are gone")
    until(lambda: all(not one["spec"].get("used") for one in listed(lab, IPAM_BLOCKS)), "released")


def listed(lab: Lab, kind: Any) -> Objects:
    async def read(client: Any) -> Objects:
        return list((await client.list(kind)).items)

    return lab.call(read)


def manifest(node: str, names: Sequence[str], **annotations: str) -> str:
    """The YAML of pods on a node."""
    noted = "".join(f"\n    {key}: '{value}'" for key, value in annotations.items())
    return "\n".join(
        f"""---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  annotations:
    example.com/about: addresses{noted}
spec:
  nodeName: {node}
  containers: [{{name: main, image: busybox, command: [sleep, infinity]}}]"""
        for name in names
    )


def slot_of_node1(first: str) -> str:
    return f"""apiVersion: podwire.io/v1alpha1
kind: IPAMRange
metadata: {{name: {first.replace(".", "-")}}}
spec: {{network: 10.32.0.0/24, first: {first}, node: node1}}"""


def apply(lab: Lab, node: str, *names: str, **annotations: str) -> None:
    Command(lab.name).ok("apply", "-f", "-", stdin=manifest(node, names, **annotations))


def kubectl(lab: Lab, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        ["kubectl", "--kubeconfig", str(lab.kubeconfig), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ips_when_ready(lab: Lab) -> dict[str, str]:
    """Each pod's address, when all of them are there."""
    lab.wait_ready(DEADLINE_S)
    return {one["metadata"]["name"]: one["status"]["podIP"] for one in listed(lab, PODS)}


def routes(lab: Lab, node: str) -> list[str]:
    return lab.node(node).exec(["ip", "route"]).stdout.splitlines()


def has_route(lab: Lab, node: str, start: str) -> bool:
    return any(line.startswith(start) for line in routes(lab, node))


def has_routes(lab: Lab, node: str, ips: Sequence[str], way: str) -> bool:
    return all(has_route(lab, node, f"{ip} {way}") for ip in ips)


def warned(lab: Lab, pod: str, said: str) -> bool:
    """Whether an event of a pod says so."""
    return said in Command(lab.name).ok(
        "get", "events", "--field-selector", f"involvedObject.name={pod}"
    )


def test_a_full_node_borrows_and_gives_back(calico: Lab) -> None:
    command = Command(calico.name)
    own = {one["spec"]["node"]: one["spec"]["cidr"] for one in listed(calico, IPAM_BLOCKS)}
    lender, full = sorted(own)[0], sorted(own)[1]
    apply(calico, full, *(f"p{number}" for number in range(9)))
    apply(calico, lender, "peer")
    ips = ips_when_ready(calico)
    assert len(set(ips.values())) == 10
    shown = command.ok("get", "ipamblocks", "-o", "wide").splitlines()
    rows = {line.split()[2]: line.split() for line in shown[1:]}
    assert (rows[full][3], rows[full][5]) == ("7", "0")
    assert (rows[lender][3], rows[lender][5]) == ("3", "2")
    block = next(
        one["spec"] for one in listed(calico, IPAM_BLOCKS) if one["spec"]["node"] == lender
    )
    borrowed = [one["ip"] for one in block["allocations"] if one["node"] == full]
    for node in (lender, "node1", "node2", "node3"):
        way = "dev cali" if node == full else "via 172.18.0."
        until(lambda n=node, w=way: has_routes(calico, n, borrowed, w), f"{node} knows them")  # type: ignore[misc]
    assert has_route(calico, lender, f"blackhole {own[lender]}")
    assert has_route(calico, full, f"blackhole {own[full]}")
    (name,) = [name for name, ip in ips.items() if ip == borrowed[0]]
    assert calico.pod("peer").ping(calico.pod(name)).lost == 0
    assert calico.pod(name).ping(calico.pod("peer")).lost == 0
    calico.pod(name).delete(grace_s=0)
    until(lambda: not has_route(calico, lender, f"{borrowed[0]} "), "the route has gone")

    def held() -> set[str]:
        found = (one["spec"]["allocations"] for one in listed(calico, IPAM_BLOCKS))
        return {one["ip"] for allocations in found for one in allocations}

    # Once others have been told of it, it is free for them.
    until(lambda: borrowed[0] not in held(), "the address is given back")
    logs = (calico.info.dir / "log").glob("*-agent.log")
    assert not any("keeps changing the lease" in log.read_text() for log in logs)


def test_a_pod_asks_for_its_address(calico: Lab) -> None:
    ip = str(ip_network(listed(calico, IPAM_BLOCKS)[0]["spec"]["cidr"])[5])
    asked = {"cni.projectcalico.org/ipAddrs": f'["{ip}"]'}
    apply(calico, "node3", "static", **asked)
    assert ips_when_ready(calico) == {"static": ip}
    apply(calico, "node1", "second", **{"podwire.io/ips": ip})
    until(
        lambda: warned(calico, "second", f"{ip} is held by pod default/static on node3"),
        "it is told who has it",
    )
    apply(calico, "node1", "outside", **{"podwire.io/ips": "10.9.9.9"})
    until(lambda: warned(calico, "outside", "10.9.9.9 is in no pool"), "it is told why")
    apply(calico, "node1", "elsewhere", **{"podwire.io/pools": "east"})
    until(
        lambda: warned(calico, "elsewhere", "the pools are default-ipv4-ippool"),
        "it is told which there are",
    )
    for name in ("outside", "elsewhere"):
        calico.pod(name).delete(grace_s=0)
    calico.pod("static").delete(grace_s=0)
    # What it waited for is free now.
    assert ips_when_ready(calico) == {"second": ip}


def test_a_pool_is_for_the_nodes_that_its_selector_names(calico: Lab) -> None:
    def patch(kind: Any, name: str, change: dict[str, Any]) -> None:
        calico.call(lambda client: client.merge_patch(kind, name, change))

    (pool,) = listed(calico, IP_POOLS)
    name = pool["metadata"]["name"]
    patch(IP_POOLS, name, {"spec": {"nodeSelector": "zone == 'a' && has(gpu)"}})
    try:
        patch(NODES, "node2", {"metadata": {"labels": {"zone": "a"}}})
        apply(calico, "node2", "late")
        said = f"no IPv4 pool is for this node: {name} (zone == 'a' && has(gpu))"
        until(lambda: warned(calico, "late", said), "it is told why")
        patch(NODES, "node2", {"metadata": {"labels": {"gpu": "h"}}})
        assert ips_when_ready(calico)["late"].startswith("172.31.0.")
    finally:
        patch(IP_POOLS, name, {"spec": {"nodeSelector": None}})


@needs_kubectl
def test_kubectl_asks_and_shows(calico: Lab) -> None:
    cidr = listed(calico, IPAM_BLOCKS)[0]["spec"]["cidr"]
    ip = str(ip_network(cidr)[6])
    kubectl(
        calico, "apply", "-f", "-", stdin=manifest("node3", ["static"], **{"podwire.io/ips": ip})
    )
    assert ips_when_ready(calico) == {"static": ip}
    header, *rows = kubectl(calico, "get", "ipamblocks").splitlines()
    assert header.split() == ["NAME", "CIDR", "NODE", "USED", "AGE"]
    assert next(row.split()[3] for row in rows if cidr in row) == "1"
    assert "172.31.0.0/28" in kubectl(calico, "get", "ippools")


def test_who_finds_none_free_waits_for_one(calico: Lab) -> None:
    apply(calico, "node3", *(f"p{number}" for number in range(14)))
    assert len(set(ips_when_ready(calico).values())) == 14
    apply(calico, "node1", "late")
    until(
        lambda: warned(calico, "late", "no address is free in pool default-ipv4-ippool"),
        "it is told",
    )
    calico.pod("p3").delete(grace_s=0)
    assert len(set(ips_when_ready(calico).values())) == 14


def test_an_agent_that_is_killed_in_the_middle_loses_no_address(calico: Lab) -> None:
    for round_ in range(2):
        apply(calico, "node1", *(f"r{round_}-{number}" for number in range(7)))
        until(lambda: any(one["spec"].get("used") for one in listed(calico, IPAM_BLOCKS)), "one")
        kill_agent(calico, "node1")
    ips = ips_when_ready(calico)
    assert len(set(ips.values())) == 14
    until(lambda: held(calico) == Counter(ips.values()), "the blocks say what pods have")


def test_a_node_that_lost_its_database_hands_nothing_out_twice(calico: Lab) -> None:
    apply(calico, "node1", "old1", "old2", "old3")
    before = ips_when_ready(calico)
    assert calico.node("node1").exec(["sh", "-c", "rm /var/lib/podwire/ipam.db*"]).returncode == 0
    kill_agent(calico, "node1")
    apply(calico, "node1", "new1", "new2", "new3")
    ips = ips_when_ready(calico)
    assert len(set(ips.values())) == 6
    assert {name: ips[name] for name in before} == before
    until(lambda: held(calico) == Counter(ips.values()), "the blocks say what pods have")
    assert calico.pod("old1").ping(calico.pod("new1")).lost == 0


def kill_agent(lab: Lab, node: str) -> None:
    """The lab starts it anew."""
    record = lab.info.record()
    assert record is not None

    def agent() -> processes.Process | None:
        marked = processes.marked(record.id)
        return next((one for one, name in marked.items() if name == f"{node}/agent"), None)

    found = until(agent, "the agent runs")
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)


def held(lab: Lab) -> Counter[str]:
    """How often each address is held, as blocks say."""
    blocks = [one["spec"] for one in listed(lab, IPAM_BLOCKS)]
    return Counter(one["ip"] for block in blocks for one in block.get("allocations") or ())


def test_a_node_asks_another_one_for_a_part_of_its_range(weave: Lab) -> None:
    (own,) = [one for one in ranges(weave) if one["node"] == "node2"]
    apply(weave, "node2", *(f"p{number}" for number in range(16)))
    apply(weave, "node1", "peer")
    ips = ips_when_ready(weave)
    assert len(set(ips.values())) == 17
    (given,) = [one for one in ranges(weave) if one["node"] == "node2" and one != own]
    assert given["giver"]
    assert "ASKED-BY" in Command(weave.name).ok("get", "ipamranges")
    names = [name for name in ips if name != "peer"]
    until(lambda: all(weave.pod("peer").ping(ips[one], count=1).received for one in names), "heard")


def ranges(lab: Lab) -> Objects:
    return [one["spec"] for one in listed(lab, IPAM_RANGES)]
