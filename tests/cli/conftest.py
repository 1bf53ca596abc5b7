"""An embedded API server and the installed `podwire` command to use on it."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from podwire.cluster.kube import NAMESPACES, PODS, KubeClient

from ..cluster.api_process import ApiProcess
from ..cluster.tls_front import Certificates, TlsFront

PODWIRE = Path(sys.executable).with_name("podwire")


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Cluster:
    """A namespace of a cluster, for one test."""

    kubeconfig: Path
    namespace: str
    directory: Path

    def command(self, *arguments: str) -> list[str]:
        return [str(PODWIRE), "--kubeconfig", str(self.kubeconfig), *arguments]

    def run(self, *arguments: str, stdin: str | bytes = "") -> Done:
        """Run `podwire` with these arguments."""
        done = subprocess.run(
            self.command(*arguments),
            input=stdin if isinstance(stdin, bytes) else stdin.encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *arguments: str, stdin: str = "") -> str:
        """Run `podwire`, which has to succeed; gives its output."""
        done = self.run(*arguments, stdin=stdin)
        assert done.code == 0, done
        return done.out

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `podwire`, for what goes on until it is stopped."""
        return subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def apply(self, *objects: dict[str, Any]) -> str:
        documents = "\n---\n".join(json.dumps(obj) for obj in objects)
        return self.ok("apply", "-f", "-", stdin=documents)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok("get", *arguments, "-o", "json"))


def kubeconfig(
    cluster: dict[str, Any], user: dict[str, Any], namespace: str = "default"
) -> dict[str, Any]:
    """A kubeconfig of one cluster, user and context."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [
            {"name": "x", "context": {"cluster": "c", "user": "u", "namespace": namespace}}
        ],
        "current-context": "x",
    }


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """One server for all tests of commands."""
    with ApiProcess(tmp_path_factory.mktemp("api")) as process:
        yield process


@pytest.fixture
def cluster(api: ApiProcess, tmp_path: Path) -> Iterator[Cluster]:
    """A namespace of its own."""
    namespace = f"t-{secrets.token_hex(4)}"
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(kubeconfig({"server": f"unix://{api.socket}"}, {}, namespace)))

    async def make(client: KubeClient) -> None:
        named = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        await client.create(NAMESPACES, named)

    async def empty(client: KubeClient) -> None:
        for pod in (await client.list(PODS, namespace)).items:
            await client.delete(PODS, pod["metadata"]["name"], namespace, 0)

    call(api, make)
    yield Cluster(path, namespace, tmp_path)
    call(api, empty)


def call(api: ApiProcess, work: Callable[[KubeClient], Awaitable[None]]) -> None:
    """Do something with a client of the server: a tenth of what a command takes to start."""

    async def run() -> None:
        async with KubeClient(api.config) as client:
            await work(client)

    asyncio.run(run())


@pytest.fixture
def kubectl_kubeconfig(api: ApiProcess, tmp_path: Path) -> Iterator[Path]:
    """For kubectl, which knows no Unix sockets, and sends a token over TLS only."""
    certificates = Certificates(tmp_path / "tls")
    certificates.directory.mkdir()
    certificates.make()
    front = TlsFront(certificates, api.socket, token=secrets.token_hex(16))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(front.open(), loop).result()
        path = tmp_path / "kubectl"
        path.write_text(
            json.dumps(
                kubeconfig(
                    {
                        "server": front.url,
                        "certificate-authority": str(certificates.file("ca.crt")),
                    },
                    {"token": front.token},
                )
            )
        )
        yield path
        asyncio.run_coroutine_threadsafe(front.close(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def make_pod() -> Callable[..., dict[str, Any]]:
    """A manifest of a pod with one container, on a node that there isn't.

    It is another in each test: pods on one that has been missing for 40 s are removed.
    """
    nowhere = f"nowhere-{secrets.token_hex(4)}"

    def make(name: str, **spec: Any) -> dict[str, Any]:
        container = {"name": "main", "image": "busybox", "command": ["sleep", "infinity"]}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"containers": [container], "nodeName": nowhere, **spec},
        }

    return make
