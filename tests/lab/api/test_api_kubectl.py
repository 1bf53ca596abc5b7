"""kubectl itself, against the server; left out, saying so, where there is no kubectl."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from podwire.lab.controllers import ControllerSettings
from tests.conftest import needs_kubectl
from tests.lab.api.conftest import Api, StartServer, node, pod

pytestmark = [pytest.mark.slow, needs_kubectl]

_TOKEN = "k" * 32


class Kubectl:
    """Runs kubectl with a kubeconfig of its own."""

    def __init__(self, api: Api, home: Path) -> None:
        self.api = api
        self.home = home

    async def __call__(self, *arguments: str, stdin: Any = None, code: int = 0) -> str:
        """Run it and return its output; `stdin` is a manifest."""
        running = await asyncio.create_subprocess_exec(
            *("kubectl", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "HOME": str(self.home), "KUBECONFIG": str(self.home / "config")},
        )
        sent = json.dumps(stdin).encode() if stdin else b""
        output, _ = await asyncio.wait_for(running.communicate(sent), 20)
        assert running.returncode == code, output.decode()
        return output.decode()


@pytest.fixture
async def kubectl(start: StartServer, tmp_path: Path) -> AsyncIterator[Kubectl]:
    async with start(
        port=0, token=_TOKEN, tls_dir=tmp_path, controllers=ControllerSettings()
    ) as api:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "lab",
                    "cluster": {
                        "server": f"https://127.0.0.1:{api.server.port}",
                        "certificate-authority": str(tmp_path / "tls.crt"),
                    },
                }
            ],
            "users": [{"name": "lab", "user": {"token": _TOKEN}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            "current-context": "lab",
        }
        (tmp_path / "config").write_text(json.dumps(config))
        await api.post("nodes", node())
        yield Kubectl(api, tmp_path)


async def test_apply_is_idempotent_and_merges(kubectl: Kubectl) -> None:
    manifest = pod("web")
    assert await kubectl("apply", "-f", "-", stdin=manifest) == "pod/web created\n"
    assert await kubectl("apply", "-f", "-", stdin=manifest) == "pod/web unchanged\n"
    manifest["metadata"]["labels"] = {"app": "web"}
    assert await kubectl("apply", "-f", "-", stdin=manifest) == "pod/web configured\n"
    del manifest["metadata"]["labels"]
    await kubectl("apply", "-f", "-", stdin=manifest)
    assert "labels" not in json.loads(await kubectl("get", "pod", "web", "-o", "json"))["metadata"]


async def test_apply_of_a_bad_manifest_names_the_field(kubectl: Kubectl) -> None:
    output = await kubectl("apply", "-f", "-", stdin=pod("web", restartPolicy="Maybe"), code=1)
    assert "spec.restartPolicy: Unsupported value" in output


async def test_get_prints_tables(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", stdin=pod("web"))
    await kubectl("wait", "--for=condition=PodScheduled", "pod/web", "--timeout=60s")
    header, row = (await kubectl("get", "pods", "-o", "wide")).splitlines()
    assert header.split()[:6] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP"]
    assert row.split()[:4] == ["web", "0/1", "Pending", "0"]
    assert "node1" in row
    assert "Ready" in await kubectl("get", "nodes")
    assert "Scheduled" in await kubectl("get", "events")
    assert await kubectl("get", "po", "-o", "name") == "pod/web\n"
    assert "web" in await kubectl("get", "all", "-A")


async def test_describe_label_annotate_cordon(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", stdin=pod("web"))
    await kubectl("label", "pod", "web", "app=web")
    await kubectl("annotate", "pod", "web", "note=x")
    assert await kubectl("get", "pods", "-l", "app=web", "-o", "name") == "pod/web\n"
    assert "note: x" in await kubectl("describe", "pod", "web")
    await kubectl("cordon", "node1")
    assert "SchedulingDisabled" in await kubectl("get", "node", "node1")


async def test_delete_waits_for_the_node(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", stdin=pod("web", nodeName="node1"))
    await kubectl("delete", "pod", "web", "--wait=false")
    assert "Terminating" in await kubectl("get", "pod", "web")
    await kubectl("delete", "pod", "web", "--force")
    assert "NotFound" in await kubectl("get", "pod", "web", code=1)


async def test_watch_shows_changes(kubectl: Kubectl) -> None:
    watching = asyncio.create_task(
        kubectl("get", "pods", "-w", "--output-watch-events", "--request-timeout=3s")
    )
    await kubectl("apply", "-f", "-", stdin=pod("web"))
    await kubectl("label", "pod", "web", "a=b")
    await kubectl("delete", "pod", "web", "--force")
    words = {line.split()[0] for line in (await watching).splitlines()}
    assert {"ADDED", "MODIFIED", "DELETED"} <= words


async def test_namespaces_go_with_their_content(kubectl: Kubectl) -> None:
    team = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
    await kubectl("apply", "-f", "-", stdin=team)
    await kubectl("apply", "-n", "team", "-f", "-", stdin=pod("web"))
    await kubectl("delete", "pods", "--all", "-n", "team", "--wait=false")
    await kubectl("delete", "pod", "web", "-n", "team", "--force", "--ignore-not-found")
    await kubectl("delete", "namespace", "team")
    assert "NotFound" in await kubectl("get", "namespace", "team", code=1)


async def test_discovery(kubectl: Kubectl) -> None:
    assert "Server Version: v1." in await kubectl("version")
    names = (await kubectl("api-resources", "-o", "name")).split()
    assert {"pods", "nodes", "leases.coordination.k8s.io"} <= set(names)
    assert json.loads(await kubectl("get", "--raw", "/api/v1/nodes"))["kind"] == "NodeList"
    assert "restartPolicy" in await kubectl("explain", "pod.spec")


async def test_wrong_token_is_told(kubectl: Kubectl) -> None:
    output = await kubectl("get", "pods", "--token=" + "x" * 32, code=1)
    assert "You must be logged in to the server" in output
