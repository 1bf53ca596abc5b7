"""apply, get, describe, delete and wait against the embedded API server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from podwire.cluster.kube import CONFIGMAPS, PODS, ClientConfig, KubeClient
from tests.conftest import needs_kubectl

from .conftest import Cluster

# Each test runs whole processes; script/test --fast leaves them out.
pytestmark = pytest.mark.slow

Pod = Callable[..., dict[str, Any]]


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def with_client(cluster: Cluster, work: Callable[[KubeClient], Awaitable[object]]) -> None:
    """Do something that is none of the commands."""

    async def connected() -> None:
        async with KubeClient(ClientConfig.from_kubeconfig(cluster.kubeconfig)) as client:
            await work(client)

    asyncio.run(connected())


def report_status(cluster: Cluster, name: str, status: dict[str, Any]) -> None:
    """Report a pod's status as a kubelet does."""
    patch = {"status": status}
    with_client(
        cluster,
        lambda client: client.merge_patch(PODS, name, patch, cluster.namespace, "status"),
    )


def test_apply_creates_configures_and_leaves_alone(cluster: Cluster) -> None:
    assert cluster.apply(config_map("a", x="1", y="2")) == "configmap/a created\n"
    assert cluster.apply(config_map("a", x="1", y="2")) == "configmap/a unchanged\n"
    assert cluster.apply(config_map("a", x="3")) == "configmap/a configured\n"
    assert cluster.json("cm", "a")["data"] == {"x": "3"}


def test_apply_leaves_what_others_set(cluster: Cluster) -> None:
    cluster.apply(config_map("a", x="1"))
    patch = {"data": {"theirs": "2"}}
    with_client(
        cluster, lambda client: client.merge_patch(CONFIGMAPS, "a", patch, cluster.namespace)
    )
    assert cluster.apply(config_map("a", x="1")) == "configmap/a unchanged\n"
    assert cluster.apply(config_map("a", x="3")) == "configmap/a configured\n"
    assert cluster.json("cm", "a")["data"] == {"x": "3", "theirs": "2"}


def test_a_pod_that_the_server_filled_in_is_unchanged(cluster: Cluster, make_pod: Pod) -> None:
    assert cluster.apply(make_pod("a")) == "pod/a created\n"
    assert cluster.apply(make_pod("a")) == "pod/a unchanged\n"


def test_what_get_prints_can_be_applied(cluster: Cluster, make_pod: Pod) -> None:
    cluster.apply(make_pod("a"), config_map("b", x="1"))
    printed = cluster.ok("get", "pods,cm", "-o", "yaml")
    cluster.ok("apply", "-f", "-", stdin=printed)
    assert cluster.ok("apply", "-f", "-", stdin=printed) == (
        "pod/a unchanged\nconfigmap/b unchanged\n"
    )


def test_nothing_is_sent_when_one_manifest_is_wrong(cluster: Cluster) -> None:
    path = cluster.directory / "m.yaml"
    path.write_text(yaml.safe_dump_all([config_map("a"), {"apiVersion": "v1", "kind": "Wat"}]))
    done = cluster.run("apply", "-f", str(path))
    assert done.code == 1
    assert done.err == f"error: {path}: document 2: metadata: required\n"
    path.write_text(
        yaml.safe_dump_all(
            [config_map("a"), {"apiVersion": "v9", "kind": "Wat", "metadata": {"name": "x"}}]
        )
    )
    done = cluster.run("apply", "-f", str(path))
    assert done.err == f"error: {path}: document 2: kind: the server has no Wat in v9\n"
    assert cluster.json("cm")["items"] == []


def test_a_refusal_names_file_document_and_field(cluster: Cluster, make_pod: Pod) -> None:
    bad = make_pod("bad")
    del bad["spec"]["containers"][0]["name"]
    path = cluster.directory / "m.yaml"
    path.write_text(yaml.safe_dump_all([bad, config_map("good")]))
    done = cluster.run("apply", "-f", str(path))
    assert done.code == 1
    assert f"{path}: document 1: spec.containers[0].name: " in done.err
    assert done.out == "configmap/good created\n"


def test_namespaces_must_agree(cluster: Cluster) -> None:
    elsewhere = config_map("a")
    elsewhere["metadata"]["namespace"] = "elsewhere"
    done = cluster.run("apply", "-f", "-", "-n", "default", stdin=json.dumps(elsewhere))
    assert "metadata.namespace" in done.err


def test_apply_over_what_was_made_otherwise_warns(cluster: Cluster) -> None:
    with_client(
        cluster,
        lambda client: client.create(CONFIGMAPS, config_map("a", x="1"), cluster.namespace),
    )
    done = cluster.run("apply", "-f", "-", stdin=json.dumps(config_map("a", x="1")))
    assert done.code == 0
    assert done.err.startswith("warning: configmap/a was not made by apply")
    assert cluster.apply(config_map("a", x="1")) == "configmap/a unchanged\n"


def test_get_tables(cluster: Cluster, make_pod: Pod) -> None:
    cluster.apply(a := make_pod("a"), make_pod("b"))
    lines = cluster.ok("get", "po", "-o", "wide").splitlines()
    assert lines[0].split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    assert lines[1].split()[:4] == ["a", "0/1", "Pending", "0"]
    assert lines[1].split()[5:] == ["<none>", a["spec"]["nodeName"]]
    assert cluster.ok("get", "pods", "-l", "app=b", "--no-headers").split()[0] == "b"
    selected = cluster.ok("get", "pods", "--field-selector", "metadata.name=a", "-o", "name")
    assert selected == "pod/a\n"
    every = cluster.ok("get", "pods", "-A").splitlines()
    assert every[0].startswith("NAMESPACE")
    assert any(line.startswith(f"{cluster.namespace} ") for line in every)


def test_get_by_name_in_every_format(cluster: Cluster) -> None:
    cluster.apply(config_map("a", x="1"), config_map("b"))
    assert cluster.json("cm", "a")["data"] == {"x": "1"}
    assert cluster.json("configmap/a")["kind"] == "ConfigMap"
    assert yaml.safe_load(cluster.ok("get", "cm", "a", "-o", "yaml"))["data"] == {"x": "1"}
    assert cluster.ok("get", "cm", "a", "-o", "jsonpath={.data.x}") == "1\n"
    assert cluster.ok("get", "cm/a", "cm/b", "-o", "name") == "configmap/a\nconfigmap/b\n"
    listed = cluster.json("cm")
    assert listed["kind"] == "List"
    assert [item["metadata"]["name"] for item in listed["items"]] == ["a", "b"]


def test_get_several_kinds(cluster: Cluster, make_pod: Pod) -> None:
    cluster.apply(make_pod("a"), config_map("a"))
    parts = cluster.ok("get", "pods,cm").split("\n\n")
    assert parts[0].splitlines()[1].startswith("pod/a ")
    assert parts[1].splitlines()[1].startswith("configmap/a ")


def test_get_tells_what_is_missing(cluster: Cluster) -> None:
    cluster.apply(config_map("a"))
    done = cluster.run("get", "cm", "a", "gone")
    assert (done.code, done.out.splitlines()[1].split()[0]) == (1, "a")
    assert done.err == 'error: configmaps "gone" not found\n'
    nothing = cluster.run("get", "pods")
    assert (nothing.code, nothing.out) == (0, "")
    assert nothing.err == f"No resources found in {cluster.namespace} namespace.\n"
    unknown = cluster.run("get", "wat")
    assert unknown.code == 1
    assert 'no resource type "wat"' in unknown.err
    assert "pods" in unknown.err


def test_get_watch_goes_on(cluster: Cluster, make_pod: Pod) -> None:
    cluster.apply(make_pod("a"))
    process = cluster.start("get", "pods", "-w")
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("NAME")
        assert process.stdout.readline().startswith("a ")
        cluster.apply(make_pod("b"))
        assert process.stdout.readline().startswith("b ")
        report_status(cluster, "b", {"phase": "Failed", "reason": "Evicted"})
        assert "Evicted" in process.stdout.readline()
    finally:
        process.terminate()
        process.communicate()


def test_describe(cluster: Cluster, make_pod: Pod) -> None:
    cluster.apply(make_pod("a"))
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "a.1"},
        "involvedObject": {"kind": "Pod", "name": "a", "namespace": cluster.namespace},
        "type": "Warning",
        "reason": "FailedCreatePodSandBox",
        "message": "no more addresses",
        "count": 3,
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "source": {"component": "kubelet", "host": "node1"},
    }
    cluster.apply(event)
    text = cluster.ok("describe", "pod", "a")
    for line in (
        "Name:              a",
        "Status:            Pending",
        "    Command:           sleep",
    ):
        assert line in text
    assert "last-applied" not in text
    row = text.splitlines()[-1].split()
    assert row[:2] == ["Warning", "FailedCreatePodSandBox"]
    assert "(x3)" in text
    assert text.rstrip().endswith("no more addresses")


def test_describe_any_kind(cluster: Cluster) -> None:
    cluster.apply(config_map("a", x="1"))
    text = cluster.ok("describe", "cm/a")
    assert "Data:\n  x: '1'\n" in text
    assert text.endswith("Events:            <none>\n")


def test_delete_waits_until_a_pod_is_gone(cluster: Cluster, make_pod: Pod) -> None:
    cluster.apply(make_pod("a"))
    process = cluster.start("delete", "pod", "a", "--grace-period", "30")
    assert process.stdout is not None
    assert process.stdout.readline() == 'pod "a" deleted\n'
    if cluster.run("get", "pod", "a").code == 0:
        assert "Terminating" in cluster.ok("get", "pod", "a")
        assert process.poll() is None
        cluster.ok("delete", "pod", "a", "--grace-period", "0", "--no-wait")
    assert process.wait(60) == 0
    process.communicate()
    assert cluster.run("get", "pod", "a").code == 1


def test_delete_by_manifest_label_and_all(cluster: Cluster, make_pod: Pod) -> None:
    path = cluster.directory / "m.yaml"
    path.write_text(yaml.safe_dump_all([config_map("a"), config_map("b")]))
    cluster.ok("apply", "-f", str(path))
    assert cluster.ok("delete", "-f", str(path)).splitlines() == [
        'configmap "a" deleted',
        'configmap "b" deleted',
    ]
    again = cluster.run("delete", "-f", str(path))
    assert (again.code, again.err.count("not found")) == (1, 2)
    assert cluster.run("delete", "-f", str(path), "--ignore-not-found").code == 0
    cluster.apply(make_pod("a"), make_pod("b"), make_pod("c"))
    assert cluster.ok("delete", "pods", "-l", "app=b", "--grace-period=0") == 'pod "b" deleted\n'
    assert cluster.ok("delete", "pods", "--all", "--grace-period=0").count("deleted") == 2
    assert cluster.run("delete", "pods").code == 2


def test_wait_for_conditions_values_and_deletion(cluster: Cluster, make_pod: Pod) -> None:
    cluster.apply(make_pod("a"), make_pod("b"))
    late = cluster.run("wait", "pod/a", "--for=condition=Ready", "--timeout=0")
    assert late.code == 1
    assert late.err == "error: timed out waiting for condition=Ready on pod/a\n"

    def report() -> None:
        for name in ("a", "b"):
            ready = {"type": "Ready", "status": "True"}
            report_status(
                cluster, name, {"phase": "Running", "podIP": "10.0.0.9", "conditions": [ready]}
            )

    reporter = threading.Timer(0.5, report)
    reporter.start()
    out = cluster.ok("wait", "pods", "--all", "--for=condition=Ready", "--timeout", "20s")
    reporter.join()
    assert sorted(out.splitlines()) == ["pod/a condition met", "pod/b condition met"]
    for condition in (
        "jsonpath={.status.podIP}",
        "jsonpath={.status.phase}=Running",
        "condition=ready=true",
        "create",
    ):
        assert cluster.ok("wait", "pod", "a", f"--for={condition}") == "pod/a condition met\n"
    assert cluster.run("wait", "pod/gone", "--for=condition=Ready").code == 1
    assert cluster.ok("wait", "pod/gone", "--for=delete") == "pod/gone condition met\n"


@needs_kubectl
def test_kubectl_and_podwire_apply_over_each_other(
    cluster: Cluster, make_pod: Pod, kubectl_kubeconfig: Path
) -> None:
    def kubectl(*arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            ["kubectl", "-n", cluster.namespace, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "KUBECONFIG": str(kubectl_kubeconfig)},
        )
        return done.stdout

    first, second = config_map("a", x="1", y="2"), config_map("a", x="1", z="3")
    assert kubectl("apply", "--validate=false", "-f", "-", stdin=json.dumps(first)) == (
        "configmap/a created\n"
    )
    assert cluster.apply(first) == "configmap/a unchanged\n"
    assert cluster.apply(second) == "configmap/a configured\n"
    assert kubectl("apply", "--validate=false", "-f", "-", stdin=json.dumps(second)) == (
        "configmap/a unchanged\n"
    )
    assert cluster.json("cm", "a")["data"] == {"x": "1", "z": "3"}
    cluster.apply(make_pod("p"))
    ours, theirs = cluster.ok("get", "pods,cm"), kubectl("get", "pods,cm")
    assert without_ages(ours) == without_ages(theirs)
    assert cluster.ok("get", "pods,cm", "-o", "name") == kubectl("get", "pods,cm", "-o", "name")


def without_ages(table: str) -> list[list[str]]:
    """The cells of a table but the last in each row."""
    return [line.split()[:-1] for line in table.splitlines()]
