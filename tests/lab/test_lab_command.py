"""`podwire lab`: the command as people use it, and what a lab does to its machine."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from podwire.errors import InputError, LabError
from podwire.lab import Lab, checks, readiness, registry
from podwire.lab.control import Control, Snapshot
from podwire.lab.registry import LabInfo

PODWIRE = str(Path(sys.executable).parent / "podwire")


def podwire(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PODWIRE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **env},
    )


def random_name() -> str:
    return f"t-{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=2) as lab:
        yield lab


def lab_command(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    return podwire("--lab", lab.name, "lab", *arguments)


# -- what needs no lab -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Lab", "-a", "a-", "a.b", "a/b", "ä", "a" * 33, ".."])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="is not a lab name"):
        registry.check_name(name)


@pytest.mark.parametrize("count", [-1, 0, 101])
def test_number_of_nodes_has_a_range(count: int) -> None:
    with pytest.raises(InputError, match="not between 1 and 100"):
        checks.check_node_count(count)


def test_socket_paths_fit_the_longest_names() -> None:
    lab = LabInfo("a" * registry.MAX_NAME)
    for path in (lab.api_socket, lab.supervisor_socket, lab.node_dir("node100") / "kubelet.sock"):
        assert len(str(path)) < 108, path


def test_what_is_said_again_and_again_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    # The path of a Unix socket has to be short.
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        monkeypatch.setattr(registry, "LABS", Path(directory))
        lab = LabInfo("x")
        lab.dir.mkdir()
        with socket.create_server(str(lab.supervisor_socket), family=socket.AF_UNIX) as listener:
            threading.Thread(target=_repeat_snapshot, args=(listener,)).start()
            with Control(lab) as control:
                news = control.watch(timeout_s=0.3)
                assert next(news) == Snapshot(nodes=("node1",))
                with pytest.raises(TimeoutError):
                    next(news)


def _repeat_snapshot(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection, suppress(OSError):
        while True:
            connection.sendall(b'{"nodes":["node1"]}\n')
            time.sleep(0.01)


def test_command_that_needs_root_says_so() -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", PODWIRE, "lab", "up", "--name", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Permission denied" in done.stderr:
        pytest.skip("the checkout cannot be read by others")
    assert done.returncode == 1
    assert "error: a lab needs root\nhint: run the command with sudo" in done.stderr


def test_resolve_names_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "LABS", tmp_path / "labs")
    monkeypatch.delenv("PODWIRE_LAB", raising=False)
    with pytest.raises(LabError, match="there is no lab on this machine"):
        registry.resolve(None)
    (tmp_path / "labs/one").mkdir(parents=True)
    assert registry.resolve(None).name == "one"
    (tmp_path / "labs/two").mkdir()
    with pytest.raises(LabError, match="several labs: one, two"):
        registry.resolve(None)
    assert registry.resolve("two").name == "two"
    monkeypatch.setenv("PODWIRE_LAB", "one")
    assert registry.resolve(None).name == "one"
    with pytest.raises(LabError, match=r'no lab is named "three" \(there is one, two\)'):
        registry.resolve("three")


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.slow
def test_up_list_status_down() -> None:
    name = random_name()
    try:
        up = podwire("lab", "up", "--nodes", "1", "--name", name)
        assert up.returncode == 0, up.stderr
        assert f'Lab "{name}" is up: 1 node' in up.stdout
        assert "node1 is ready" in up.stderr
        again = podwire("lab", "up", "--name", name)
        assert (again.returncode, "is already up" in again.stderr) == (0, True)
        other = podwire("lab", "up", "--name", name, "--nodes", "2")
        assert other.returncode == 1
        assert "exists with 1 nodes, not 2" in other.stderr
        assert "podwire lab node add" in other.stderr
        listed = json.loads(podwire("lab", "list", "-o", "json").stdout)["labs"]
        (found,) = [one for one in listed if one["name"] == name]
        assert (found["status"], found["nodes"], found["profile"]) == ("up", 1, "flannel-vxlan")
        status = podwire("lab", "status", PODWIRE_LAB=name)
        assert status.returncode == 0
        assert "node1/agent" in status.stdout
        exported = podwire("--lab", name, "lab", "kubeconfig").stdout
        assert exported == f"export KUBECONFIG={LabInfo(name).kubeconfig}\n"
    finally:
        down = podwire("lab", "down", name)
    assert down.returncode == 0, down.stderr
    assert name not in podwire("lab", "list").stdout
    gone = podwire("lab", "down", name)
    assert (gone.returncode, f'no lab is named "{name}"' in gone.stderr) == (1, True)


@pytest.mark.root
@pytest.mark.slow
def test_logs_and_shell(lab: Lab) -> None:
    assert "ready" in lab_command(lab, "logs", "api").stdout
    assert "network ready" in lab_command(lab, "logs", "node1/kubelet").stdout
    unknown = lab_command(lab, "logs", "node9/agent")
    assert unknown.returncode == 1
    assert "node1/agent, node1/kubelet" in unknown.stderr
    assert lab_command(lab, "shell", "node2", "hostname").stdout == "node2\n"
    assert lab_command(lab, "shell", "node2", "--", "sh", "-c", "exit 5").returncode == 5
    assert "no running node" in lab_command(lab, "shell", "node9").stderr


@pytest.mark.root
@pytest.mark.slow
def test_node_add_and_remove(lab: Lab) -> None:
    a = lab.run("a", node="node1")
    added = lab_command(lab, "node", "add")
    assert added.returncode == 0, added.stderr
    assert added.stdout == "node3 (172.18.0.13) is ready.\n"
    b = lab.run("b", node="node3")
    assert a.ping(b).lost == 0
    removed = lab_command(lab, "node", "remove", "node3")
    assert removed.returncode == 0, removed.stderr
    assert "node3" not in podwire("--lab", lab.name, "get", "nodes").stdout
    assert not Path("/run/netns", lab.info.netns("node3")).exists()
    assert "is not one of node1, node2" in lab_command(lab, "node", "remove", "node3").stderr


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("can hold a lab", ("--profile", "flannel-udp")),
        ("underlay and nodes are there", ("--store", "etcd")),
        ("Kubernetes API answers", ("--profile", "weave", "--underlay", "routed")),
    ],
)
def test_interrupted_up_leaves_nothing(said: str, options: tuple[str, ...]) -> None:
    name = random_name()
    before = set(processes_of(name))
    process = subprocess.Popen(
        [PODWIRE, "lab", "up", "--nodes", "2", "--name", name, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        while said not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode in (130, 0)
        if process.returncode == 130:
            assert not LabInfo(name).dir.exists()
            assert not list(registry.NETNS_DIR.glob(f"{name}-*"))
            assert set(processes_of(name)) == before
    finally:
        podwire("lab", "down", name)


def processes_of(name: str) -> Iterator[str]:
    """What runs for a lab, going by the command line."""
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if f"labs/{name}/" in (text := line.read_text()) or f"supervisor\0{name}\0" in text:
                yield f"{line.parent.name} {text}"


@pytest.mark.root
@pytest.mark.slow
def test_two_ups_at_once_make_one_lab() -> None:
    name = random_name()
    command = [PODWIRE, "lab", "up", "--nodes", "1", "--name", name]
    try:
        both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        said = [process.communicate(timeout=60)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert sorted("already up" in text for text in said) == [False, True]
    finally:
        podwire("lab", "down", name)


# -- the machine -----------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.slow
def test_labs_side_by_side_do_not_meet(lab: Lab) -> None:
    with Lab(nodes=2) as other:
        assert lab.node("node1").ip == other.node("node1").ip
        lab.run("x", node="node1").wait_ready()
        x, y = other.run("x", node="node1"), other.run("y", node="node2")
        assert x.ping(y).lost == 0
        only_there = "172.18.99.1"  # on the underlay's link, for whoever shares it
        other.node("node2").exec(["ip", "address", "add", only_there, "dev", "eth0"], check=True)
        assert other.node("node1").ping(only_there, count=1).lost == 0
        assert lab.node("node1").ping(only_there, count=1).received == 0
    assert lab.node("node1").ping(lab.node("node2")).lost == 0


@pytest.mark.root
@pytest.mark.slow
def test_nothing_of_a_lab_is_in_the_hosts_tables(lab: Lab) -> None:
    lab.run("z", node="node1").wait_ready()
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert not [word for word in ("flannel", "cni0", "underlay", "172.18.0") if word in links]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    ours = [line.split()[4] for line in mounts if lab.name in line]
    names = {f"/run/netns/{lab.info.netns(node.name)}" for node in lab.nodes}
    assert set(ours) == names | {f"/run/netns/{lab.info.underlay}"}


@pytest.mark.root
@pytest.mark.slow
def test_a_lab_holds_on_to_nothing_of_the_host(lab: Lab, tmp_path: Path) -> None:
    """What the host mounts, or unmounts, while a lab is up is the host's alone to let go."""
    netns = random_name()
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
    subprocess.run(["ip", "netns", "add", netns], check=True)
    number = Path("/run/netns", netns).stat().st_ino
    try:
        with Lab(nodes=1) as later:
            later.run("a").wait_ready()
            subprocess.run(["ip", "netns", "delete", netns], check=True)
            subprocess.run(["umount", tmp_path], check=True)
            assert str(number) not in later.node("node1").exec(["cat", "/proc/1/mountinfo"]).stdout
            # lsns finds a namespace by a process in it or a mount of it, wherever that is.
            listed = subprocess.run(
                ["lsns", "-n", "-t", "net", "-o", "NS"], capture_output=True, text=True, check=True
            )
            assert str(number) not in listed.stdout.split()
    finally:
        subprocess.run(["ip", "netns", "delete", netns], check=False, capture_output=True)
        subprocess.run(["umount", tmp_path], check=False, capture_output=True)


@pytest.mark.root
@pytest.mark.slow
def test_a_nodes_files_are_its_own(lab: Lab) -> None:
    node = lab.node("node1")
    for path in ("/etc/marker", "/run/marker", "/var/lib/marker", "/opt/marker"):
        node.exec(["touch", path], check=True)
        assert not Path(path).exists()
        assert lab.node("node2").exec(["test", "-e", path]).returncode != 0
    assert node.exec(["cat", "/etc/hostname"]).stdout == "node1\n"
    assert node.exec(["ps", "-p", "1", "-o", "comm="]).stdout == "sleep\n"


@pytest.mark.root
@pytest.mark.slow
def test_down_from_inside_is_refused(lab: Lab) -> None:
    refused = subprocess.run(
        ["ip", "netns", "exec", lab.info.netns("node1"), PODWIRE, "lab", "down", lab.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "runs inside lab" in refused.stderr
    readiness.wait_ready(lab.info, timeout_s=5)
