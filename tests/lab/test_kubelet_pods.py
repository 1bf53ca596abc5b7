"""Pods on a real lab: what containers see, how they end and restart, logs and exec."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from podwire.cluster.kube import CONFIGMAPS, EVENTS, NODES, PODS, KubeClient
from podwire.lab import Lab, LabPod
from podwire.lab.places import is_ready

pytestmark = [pytest.mark.root, pytest.mark.slow]

Json = dict[str, Any]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=2) as lab:
        yield lab


@pytest.fixture
def name(lab: Lab) -> Iterator[str]:
    """A name for the test's pod, which is deleted after it."""
    name = f"p-{secrets.token_hex(3)}"
    yield name
    lab.pod(name).delete(grace_s=0)


def container_status(pod: Json, index: int = 0) -> Json:
    status: Json = pod["status"]["containerStatuses"][index]
    return status


def phase(wanted: str) -> Callable[[Json], bool]:
    return lambda pod: (pod.get("status") or {}).get("phase") == wanted


def logs(lab: Lab, pod: LabPod, container: str | None = None, **options: Any) -> str:
    async def read(client: KubeClient) -> str:
        chunks = client.pod_logs(pod.name, pod.namespace, container=container, **options)
        return b"".join([chunk async for chunk in chunks]).decode()

    return lab.call(read)


def events(lab: Lab, pod: LabPod) -> set[str]:
    items = lab.call(lambda client: client.list(EVENTS)).items
    return {item["reason"] for item in items if item["involvedObject"]["name"] == pod.name}


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- what a container sees -------------------------------------------------------------------------


def test_pod_has_its_own_name_files_and_processes(lab: Lab, name: str) -> None:
    pod = lab.run(name, node="node1")
    assert pod.exec(["hostname"]).stdout.strip() == name
    assert f"{pod.ip}\t{name}" in pod.exec(["cat", "/etc/hosts"]).stdout
    assert "svc.cluster.local" in pod.exec(["cat", "/etc/resolv.conf"]).stdout
    assert pod.exec(["ps", "-e", "-o", "comm="]).stdout.split().count("sleep") == 2
    addresses = pod.exec(["ip", "-o", "-4", "address"]).stdout
    assert "lo " in addresses
    assert f"{pod.ip}/24" in addresses


def test_pod_cannot_change_the_machines_files_but_its_own(lab: Lab, name: str) -> None:
    pod = lab.run(name)
    for directory in ("/usr", "/usr/bin", "/boot", "/work", "/"):
        if Path(directory).is_dir():
            refused = pod.exec(["touch", f"{directory}/{name}"])
            assert refused.returncode != 0, directory
            assert "Read-only" in refused.stderr
    for directory in ("/tmp", "/etc", "/root", "/run", "/var/lib", "/var/log", "/dev/shm"):
        pod.exec(["touch", f"{directory}/{name}"], check=True)
        assert not Path(directory, name).exists(), directory
        assert pod.node.exec(["test", "-e", f"{directory}/{name}"]).returncode != 0, directory


def test_environment_and_working_directory(lab: Lab, name: str) -> None:
    config_map: Json = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": {"key": "from-map"},
    }
    lab.call(lambda client: client.create(CONFIGMAPS, config_map))
    container = {
        "name": "main",
        "command": ["sh", "-c", 'echo "$PWD $MAP $NODE $IP $(ARG)"; exec sleep 1000'],
        "workingDir": "/usr",
        "env": [
            {"name": "ARG", "value": "expanded"},
            {"name": "MAP", "valueFrom": {"configMapKeyRef": {"name": name, "key": "key"}}},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
    }
    pod = lab.run(name, node="node2", containers=[container])
    pod.wait_ready()
    assert logs(lab, pod).split() == ["/usr", "from-map", "node2", pod.ip, "expanded"]


def test_host_network_pod_is_on_the_nodes_network(lab: Lab, name: str) -> None:
    pod = lab.run(name, node="node2", hostNetwork=True)
    assert pod.ip == lab.node("node2").ip
    links = pod.exec(["ip", "-o", "link"]).stdout
    assert "flannel.1" in links
    assert pod.exec(["hostname"]).stdout.strip() == "node2"


def test_host_port_that_no_plugin_maps_is_said(lab: Lab, name: str) -> None:
    main = {"name": "main", "command": ["sleep", "inf"]}
    ports = [{"containerPort": 80, "hostPort": 8080}]
    pod = lab.run(name, node="node1", containers=[main | {"ports": ports}])
    pod.wait_ready()
    until(lambda: "IgnoredByNetwork" in events(lab, pod))


def test_busybox_applet_runs_where_the_machine_has_no_such_program(lab: Lab, name: str) -> None:
    listed = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True)
    assert "httpd" in listed.stdout, "apt-get install busybox-static"
    pod = lab.run(name, ["httpd", "-f", "-p", "80", "-h", "/usr/share/doc"])
    pod.wait_ready()
    lab.node("node1").exec(["busybox", "wget", "-O", "-", f"http://{pod.ip}/"], check=False)
    reached = ["busybox", "nc", "-w", "1", pod.ip, "80"]
    assert lab.node("node2").exec(reached, input="GET / HTTP/1.0\r\n\r\n").stdout.startswith("HTTP")


# -- lives -----------------------------------------------------------------------------------------


def test_scheduled_without_a_node_name(lab: Lab, name: str) -> None:
    pod = lab.run(name)
    assert pod.node.name in {"node1", "node2"}


@pytest.mark.parametrize(("code", "expected"), [(0, "Succeeded"), (3, "Failed")])
def test_pod_that_is_never_restarted_ends(lab: Lab, name: str, code: int, expected: str) -> None:
    pod = lab.run(name, ["sh", "-c", f"echo said; exit {code}"], restartPolicy="Never")
    ended = pod.wait(phase(expected), expected)
    terminated = container_status(ended)["state"]["terminated"]
    assert terminated["exitCode"] == code
    assert terminated["reason"] == ("Completed" if code == 0 else "Error")
    assert logs(lab, pod) == "said\n"
    node = lab.node(ended["spec"]["nodeName"])
    ip = ended["status"]["podIP"]
    assert ip, "a pod that has ended keeps the IP in its status"
    assert node.ping(ip, count=1).received == 0, "and not on the network"


def test_restart_keeps_the_ip(lab: Lab, name: str) -> None:
    pod = lab.run(name, node="node1")
    ip, pause = pod.ip, pod.pause
    pod.exec(["pkill", "-9", "-n", "-x", "sleep"])
    again = pod.wait(lambda obj: is_ready(obj) and container_status(obj)["restartCount"] == 1, "")
    assert (again["status"]["podIP"], pod.pause) == (ip, pause)
    last = container_status(again)["lastState"]["terminated"]
    assert last["exitCode"] == 137


def test_crash_loop_backs_off(lab: Lab, name: str) -> None:
    pod = lab.run(name, ["sh", "-c", "echo run; exit 1"])

    def backs_off(obj: Json) -> bool:
        statuses = (obj.get("status") or {}).get("containerStatuses") or [{"state": {}}]
        waiting = statuses[0]["state"].get("waiting") or {}
        return bool(waiting.get("reason") == "CrashLoopBackOff")

    waiting = pod.wait(backs_off, "backing off")
    assert container_status(waiting)["lastState"]["terminated"]["exitCode"] == 1
    pod.wait(lambda obj: container_status(obj)["restartCount"] >= 2, "restarted")
    assert "BackOff" in events(lab, pod)


def test_pod_whose_worker_fails_is_taken_up_again(lab: Lab, name: str) -> None:
    pod = lab.run(name, node="node1")
    ip, pause, node, uid = pod.ip, pod.pause, pod.node, pod.object["metadata"]["uid"]
    record = node.directory / "var-lib/kubelet/pods" / uid / "record.json"
    container = json.loads(record.read_bytes())["containers"]["main"]["pid"]
    record.unlink()
    record.mkdir()  # So it can't be written.
    try:
        node.exec(["kill", "-9", str(container)], check=True)
        until(lambda: "FailedSync" in events(lab, pod))
    finally:
        record.rmdir()
    pod.wait(lambda obj: is_ready(obj) and container_status(obj)["restartCount"] == 1, "again")
    assert (pod.ip, pod.pause) == (ip, pause)


def test_logs_that_are_followed_end_also_where_the_worker_failed_meanwhile(
    lab: Lab, name: str
) -> None:
    script = "echo up; until [ -e /tmp/go ]; do sleep 0.05; done; echo down"
    pod = lab.run(name, ["sh", "-c", script], node="node1", restartPolicy="Never")
    pod.wait_ready()
    kept = pod.node.directory / "var-lib/kubelet/pods" / pod.object["metadata"]["uid"]
    record = kept / "record.json"
    seen = b""

    async def follow(client: KubeClient) -> None:
        nonlocal seen
        async for chunk in client.pod_logs(name, "default", follow=True):
            seen += chunk
            if seen == b"up\n":
                await asyncio.to_thread(fail)
                assert await asyncio.to_thread(pod.exec, ["touch", "/tmp/go"])

    def fail() -> None:
        record.unlink()
        record.mkdir()  # So it can't be written.
        try:
            waking = {"metadata": {"annotations": {"wakes": "the worker"}}}
            lab.call(lambda client: client.merge_patch(PODS, name, waking, "default"))
            until(lambda: "FailedSync" in events(lab, pod))
        finally:
            record.rmdir()
        until(record.is_file)

    async def bounded(client: KubeClient) -> None:
        await asyncio.wait_for(follow(client), 120)

    lab.call(bounded)
    assert seen == b"up\ndown\n"


def test_program_that_does_not_exist(lab: Lab, name: str) -> None:
    pod = lab.run(name, ["no-such-program"], restartPolicy="Never")
    ended = container_status(pod.wait(phase("Failed"), "Failed"))["state"]["terminated"]
    assert ended["reason"] == "StartError"
    assert "'no-such-program': No such file" in ended["message"]


def test_container_that_leaves_its_command_to_an_image(lab: Lab, name: str) -> None:
    pod = lab.run(name, containers=[{"name": "main", "image": "nginx"}])

    def explained(obj: Json) -> bool:
        statuses = (obj.get("status") or {}).get("containerStatuses") or [{"state": {}}]
        message = (statuses[0]["state"].get("waiting") or {}).get("message", "")
        return "programs of this machine" in message

    pod.wait(explained, "explained")


def test_init_containers_run_first(lab: Lab, name: str) -> None:
    inits = [
        {"name": "one", "command": ["sh", "-c", "echo 1"]},
        {"name": "two", "command": ["sh", "-c", "echo 2"]},
    ]
    pod = lab.run(name, initContainers=inits)
    ready = pod.wait_ready()
    times = [
        status["state"]["terminated"]["finishedAt"]
        for status in ready["status"]["initContainerStatuses"]
    ]
    assert times == sorted(times)
    assert logs(lab, pod, "two") == "2\n"


def test_deletion_gives_the_container_its_grace_period(lab: Lab) -> None:
    name = f"p-{secrets.token_hex(3)}"
    script = "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    pod = lab.run(name, ["sh", "-c", script], node="node1")
    pod.wait_ready()
    while logs(lab, pod) != "up\n":
        pass
    seen: list[str] = []

    async def follow(client: KubeClient) -> None:
        stream = client.pod_logs(name, "default", follow=True)
        async for chunk in stream:
            seen.append(chunk.decode())
            if len(seen) == 1:
                await client.delete(PODS, name, "default")

    lab.call(follow)
    assert "".join(seen) == "up\nasked\n"
    lab.pod(name).delete()
    assert "veth" not in lab.node("node1").exec(["ip", "-o", "link", "show", "type", "veth"]).stdout


def test_pod_goes_also_where_somebody_has_made_a_namespace_of_another_kind(lab: Lab) -> None:
    """`ip netns` mounts the directory of the names, in which those of pods are mounted."""
    pod = lab.run(f"p-{secrets.token_hex(3)}", node="node1")
    pod.wait_ready()
    other = f"n-{secrets.token_hex(3)}"
    lab.node("node1").exec(["ip", "netns", "add", other], check=True)
    try:
        pod.delete(grace_s=0)
    finally:
        lab.node("node1").exec(["ip", "netns", "del", other], check=True)


def test_container_that_ignores_sigterm_is_killed(lab: Lab, name: str) -> None:
    pod = lab.run(
        name,
        ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"],
        terminationGracePeriodSeconds=1,
    )
    pod.wait_ready()
    pod.delete(timeout_s=5)


def test_two_containers_share_network_and_processes(lab: Lab, name: str) -> None:
    containers = [
        {"name": "a", "command": ["sleep", "1000"]},
        {"name": "b", "command": ["sleep", "2000"]},
    ]
    pod = lab.run(name, containers=containers)
    listed = pod.exec(["ps", "-e", "-o", "args="]).stdout
    assert "sleep 1000" in listed
    assert "sleep 2000" in listed
    assert len(pod.ips) == 1


def test_many_pods_at_once(lab: Lab) -> None:
    names = [f"many-{index}" for index in range(20)]
    pods = [lab.run(name) for name in names]
    ips = {pod.ip for pod in pods}
    assert len(ips) == len(pods)

    async def delete_all(client: KubeClient) -> None:
        await asyncio.gather(*(client.delete(PODS, name, "default") for name in names))

    lab.call(delete_all)
    for pod in pods:
        pod.delete()


# -- logs and exec ---------------------------------------------------------------------------------


def test_logs_by_tail_and_run(lab: Lab, name: str) -> None:
    pod = lab.run(name, ["sh", "-c", "echo one; echo two; echo three; exec sleep 1000"])
    pod.wait_ready()
    while logs(lab, pod).count("\n") < 3:
        pass
    assert logs(lab, pod) == "one\ntwo\nthree\n"
    assert logs(lab, pod, tail_lines=2) == "two\nthree\n"
    assert logs(lab, pod, tail_lines=0) == ""
    assert logs(lab, pod, tail_lines=99) == "one\ntwo\nthree\n"


def run_in(lab: Lab, pod: LabPod, *command: str, stdin: bytes | None = None) -> tuple[int, str]:
    async def run(client: KubeClient) -> tuple[int, str]:
        session = await client.pod_exec(pod.name, pod.namespace, command, stdin=stdin is not None)
        output = b""
        async with session:
            if stdin is not None:
                await session.write(stdin)
                await session.close_stdin()
            async for _, data in session:
                output += data
        return session.exit_code, output.decode()

    return lab.call(run)


def test_exec_reports_output_and_exit_code(lab: Lab, name: str) -> None:
    pod = lab.run(name)
    pod.wait_ready()
    assert run_in(lab, pod, "sh", "-c", "hostname; exit 7") == (7, f"{name}\n")
    assert run_in(lab, pod, "cat", stdin=b"x" * 300_000) == (0, "x" * 300_000)
    code, said = run_in(lab, pod, "no-such-program")
    assert code == 127
    assert "'no-such-program': No such file" in said


def test_exec_ends_with_its_command_whatever_that_left_behind(lab: Lab, name: str) -> None:
    pod = lab.run(name)
    pod.wait_ready()
    assert run_in(lab, pod, "sh", "-c", "sleep 1000 & echo done") == (0, "done\n")


def test_exec_is_killed_when_its_client_goes(lab: Lab, name: str) -> None:
    pod = lab.run(name)
    pod.wait_ready()

    async def start_and_leave(client: KubeClient) -> None:
        session = await client.pod_exec(name, "default", ["sh", "-c", "echo up; sleep 4321"])
        async with session:
            async for _ in session:
                return

    lab.call(start_and_leave)

    async def gone() -> None:
        async with asyncio.timeout(60):
            while "sleep 4321" in pod.exec(["ps", "-e", "-o", "args="]).stdout:
                await asyncio.sleep(0.02)

    asyncio.run(gone())


# -- the node --------------------------------------------------------------------------------------


def test_node_object_is_a_kubelets(lab: Lab) -> None:
    node = lab.get(NODES, "node1")
    status = node["status"]
    assert {entry["type"]: entry["address"] for entry in status["addresses"]} == {
        "InternalIP": "172.18.0.11",
        "Hostname": "node1",
    }
    conditions = {one["type"]: one["status"] for one in status["conditions"]}
    assert conditions["Ready"] == "True"
    assert conditions["MemoryPressure"] == "False"
    assert status["nodeInfo"]["kubeletVersion"].startswith("v1.")
    assert node["metadata"]["labels"]["kubernetes.io/hostname"] == "node1"


def test_node_is_ready_only_with_a_network(lab: Lab) -> None:
    conf = lab.node("node2").directory / "net.d" / "10-podwire.conflist"
    content = conf.read_bytes()
    conf.unlink()
    gone = lab.wait(NODES, "node2", None, lambda node: not is_ready(node), "not ready")
    ready = next(one for one in gone["status"]["conditions"] if one["type"] == "Ready")
    assert ready["reason"] == "KubeletNotReady"
    assert "cni config uninitialized" in ready["message"]
    conf.write_bytes(content)
    lab.wait(NODES, "node2", None, is_ready, "ready")


def test_node_object_that_is_deleted_comes_back(lab: Lab) -> None:
    uid = lab.get(NODES, "node2")["metadata"]["uid"]
    lab.call(lambda client: client.delete(NODES, "node2"))
    back = lab.wait(NODES, "node2", None, is_ready, "back")
    assert back["metadata"]["uid"] != uid
