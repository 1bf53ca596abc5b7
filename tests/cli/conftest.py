"""An embedded API server and the installed `podwire` command to use on it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..cluster.api_process import ApiProcess

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

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONUNBUFFERED": "1"}

    def command(self, *arguments: str) -> list[str]:
        return [str(PODWIRE), "--kubeconfig", str(self.kubeconfig), *arguments]

    def run(self, *arguments: str, stdin: str | bytes = "") -> Done:
        """Run `podwire` with these arguments."""
        done = subprocess.run(
            self.command(*arguments),
            input=stdin if isinstance(stdin, bytes) else stdin.encode(),
            capture_output=True,
            env=self.environment,
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
            env=self.environment,
        )

    def apply(self, *objects: dict[str, Any]) -> str:
        documents = "\n---\n".join(json.dumps(obj) for obj in objects)
        return self.ok("apply", "-f", "-", stdin=documents)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok("get", *arguments, "-o", "json"))


def kubeconfig_for(api: ApiProcess, path: Path, namespace: str) -> Path:
    """Write a kubeconfig whose default namespace is `namespace`."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"unix://{api.socket}"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "namespace": namespace}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """One server for all tests of commands."""
    process = ApiProcess(tmp_path_factory.mktemp("api"))
    process.start()
    yield process
    process.stop()


@pytest.fixture
def cluster(api: ApiProcess, tmp_path: Path) -> Iterator[Cluster]:
    """A namespace of its own."""
    namespace = f"t-{secrets.token_hex(4)}"
    made = Cluster(kubeconfig_for(api, tmp_path / "kubeconfig", namespace), namespace, tmp_path)
    made.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    yield made
    made.run("delete", "pods", "--all", "--grace-period", "0", "--no-wait")


@pytest.fixture
def make_pod() -> Callable[..., dict[str, Any]]:
    """A manifest of a pod with one container."""

    def make(name: str, **spec: Any) -> dict[str, Any]:
        container = {"name": "main", "image": "busybox", "command": ["sleep", "infinity"]}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"containers": [container], "nodeName": "nowhere", **spec},
        }

    return make
