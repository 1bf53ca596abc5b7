"""The way to agents, where something on it is missing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from podwire.cli import agents as module
from podwire.cli.agents import Agents, agents
from podwire.cli.context import Target
from podwire.errors import AgentAwayError, InputError, PodwireError
from podwire.lab import registry

from ..cluster.api_process import ApiProcess, Wire
from ..trace.agent_stub import stub_agent
from .conftest import kubeconfig


@pytest.fixture
async def wire(api: ApiProcess, tmp_path: Path) -> AsyncIterator[Wire]:
    """A cluster's API whose answers the test may give itself."""
    made = Wire(tmp_path / "wire.sock", api.socket)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def of_cluster(wire: Wire, tmp_path: Path) -> AsyncIterator[Agents]:
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(kubeconfig({"server": f"unix://{wire.path}"}, {})))
    async with agents(Target(kubeconfig=path)) as them:
        yield them


def pod_list(*pods: dict[str, Any]) -> bytes:
    body = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}}
    return json.dumps({**body, "items": list(pods)}).encode()


def agent_pod(phase: str = "Running", **metadata: Any) -> dict[str, Any]:
    about = {"name": "podwire-x", "namespace": "kube-system", **metadata}
    return {"metadata": about, "status": {"phase": phase}}


FORBIDDEN = json.dumps(
    {
        "kind": "Status",
        "status": "Failure",
        "reason": "Forbidden",
        "code": 403,
        "message": 'User "eve" cannot create resource "pods/exec" in the namespace "kube-system"',
    }
).encode()


async def test_who_may_not_exec_is_told_which_right_it_takes(
    of_cluster: Agents, wire: Wire
) -> None:
    wire.answer("200 OK", pod_list(agent_pod()))
    wire.answer("403 Forbidden", FORBIDDEN)
    with pytest.raises(PodwireError, match="not allowed to ask the agent of node1") as caught:
        await of_cluster.dial("node1")
    assert 'User "eve" cannot create' in caught.value.message
    assert caught.value.remedy == "it takes the right to create pods/exec in namespace kube-system"


async def test_who_may_not_list_pods_is_told(of_cluster: Agents, wire: Wire) -> None:
    wire.answer("403 Forbidden", FORBIDDEN)
    with pytest.raises(PodwireError, match="not allowed to look for the agent of node1"):
        await of_cluster.dial("node1")


async def test_a_node_without_an_agent(of_cluster: Agents) -> None:
    with pytest.raises(AgentAwayError, match="there is no agent on node node1"):
        await of_cluster.dial("node1")


async def test_an_agent_pod_that_does_not_run(of_cluster: Agents, wire: Wire) -> None:
    wire.answer("200 OK", pod_list(agent_pod("Pending")))
    with pytest.raises(AgentAwayError, match="pod podwire-x is Pending"):
        await of_cluster.dial("node1")


async def test_a_cluster_has_several_agents(of_cluster: Agents) -> None:
    with pytest.raises(InputError, match="which node's agent"):
        await of_cluster.dial(None)


# --- this host, and labs ------------------------------------------------------------------------


@pytest.fixture
def no_labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No lab, no cluster: a host, perhaps with an agent at the path returned."""
    monkeypatch.setattr(registry, "LABS", tmp_path)
    monkeypatch.setattr(module, "HOST_SOCKET", tmp_path / "operator.sock")
    for name in ("PODWIRE_LAB", "KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "operator.sock"


async def test_the_hosts_own_agent_needs_no_cluster(no_labs: Path) -> None:
    async with stub_agent(no_labs) as stub, agents(Target()) as them:
        connection = await them.dial()
        assert connection.welcome.node == "node1"
        assert stub.open == 1
        with pytest.raises(InputError, match="kubeconfig"):
            await them.dial("node1")


async def test_no_agent_on_this_host(no_labs: Path) -> None:
    async with agents(Target()) as them:
        with pytest.raises(AgentAwayError, match="the agent of this host does not run"):
            await them.dial()


@pytest.fixture
def lab(no_labs: Path, tmp_path: Path) -> registry.LabInfo:
    """A lab as far as it is on disk."""
    info = registry.LabInfo("demo")
    (info.node_dir("node1") / "run" / "podwire").mkdir(parents=True)
    return info


async def test_an_agent_of_a_lab(lab: registry.LabInfo) -> None:
    path = lab.node_dir("node1") / "run" / "podwire" / "operator.sock"
    async with agents(Target()) as them:
        with pytest.raises(AgentAwayError, match="the agent of node1 does not run"):
            await them.dial("node1")
        async with stub_agent(path) as stub:
            await them.dial("node1")
            assert stub.open == 1


@pytest.mark.parametrize("node", ["node7", "..", "../nodes/node1", "", "."])
async def test_a_lab_has_no_such_node(lab: registry.LabInfo, node: str) -> None:
    async with agents(Target()) as them:
        with pytest.raises(InputError, match="lab demo has no node"):
            await them.dial(node)


async def test_a_lab_has_several_agents(lab: registry.LabInfo) -> None:
    async with agents(Target()) as them:
        with pytest.raises(InputError, match="which node of lab demo"):
            await them.dial()
