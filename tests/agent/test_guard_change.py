"""Another plugin needs the place of the guards' programs while pods are running."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.conftest import Namespace
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from tests.agent.conftest import AgentProcess, Cluster

pytestmark = pytest.mark.root

#: Sends to the gateway, by turns with the pod's own source and with another, until it is told to
#: end; then how often.
SENDER = """
import select, socket, struct, sys
own, other, gateway = map(socket.inet_aton, sys.argv[1:])
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
count = 0
while not select.select([sys.stdin], [], [], 0.001)[0]:
    for source in (own, other):
        udp = struct.pack(">HHHH", 1, 9999, 8, 0)
        head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, source, gateway)
        raw.sendto(head + udp, (socket.inet_ntoa(gateway), 0))
    count += 1
print(count)
"""
#: How often each source is heard of.
RECEIVER = """
import collections, json, select, socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
sock.bind(("", 9999))
print("ready", flush=True)
heard = collections.Counter()
while True:
    ready = select.select([sock, sys.stdin], [], [])[0]
    if sock in ready:
        heard[sock.recvfrom(100)[1][0]] += 1
    elif ready:
        break
print(json.dumps(heard))
"""


def python(namespace: Namespace, program: str, *arguments: str) -> subprocess.Popen[str]:
    command = ["ip", "netns", "exec", namespace.name, sys.executable, "-c", program, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def test_pods_stay_guarded_and_connected(
    cluster: Cluster, agent: AgentProcess, make_namespace: Callable[[], Namespace]
) -> None:
    cluster.add_node("node1")
    agent.start().wait_ready()
    pod = make_namespace()
    conf = {"cniVersion": "1.0.0", "name": "podwire", "type": "podwire"}
    call = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "one", "CNI_IFNAME": "eth0"}
    added = subprocess.run(
        [agent.executable],
        input=json.dumps(conf),
        env={**call, "CNI_NETNS": pod.path},
        capture_output=True,
        text=True,
    )
    assert added.returncode == 0, added.stdout
    (ip,) = json.loads(added.stdout)["ips"]
    own, gateway = ip["address"].partition("/")[0], ip["gateway"]
    listed = agent.json("ip -j link show type veth")
    (port,) = (one["ifname"] for one in listed if one["ifname"].startswith("veth"))
    filters = f"tc filter show dev {port} ingress"
    assert "podwire" in agent.namespace.run(filters)

    receiver = python(agent.namespace, RECEIVER)
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "ready\n"
    sender = python(pod, SENDER, own, gateway.rpartition(".")[0] + ".99", gateway)
    try:
        chained = {"name": "x", "plugins": [{"type": "podwire"}, {"type": "bandwidth"}]}
        (agent.conflist.parent / "05-x.conflist").write_text(json.dumps(chained))
        until(lambda: agent.namespace.run(filters) == "", "the program is gone")
        assert port in agent.namespace.run("nft list set bridge podwire guarded")
        agent.wait_ready()
        sent = int(sender.communicate("end\n", timeout=60)[0])
        heard = json.loads(receiver.communicate("end\n", timeout=60)[0])
    finally:
        for process in (sender, receiver):
            process.kill()
            process.wait()
    assert heard == {own: sent}
