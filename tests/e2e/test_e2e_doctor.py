"""The doctor: a fresh lab is healthy, and each trouble that is made is found, and only that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from podwire.agent.doctor.names import CHECKS
from podwire.cluster.kube import NODES
from podwire.lab import Lab, LabNode

from .commands import Command
from .waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow]

PODWIRE = Path(sys.executable).with_name("podwire")
Finding = dict[str, Any]


@dataclass(frozen=True)
class Examined:
    """What the command said, and its exit code."""

    code: int
    document: dict[str, Any]

    def of(self, node: str) -> list[Finding]:
        (found,) = [one for one in self.document["nodes"] if one["node"] == node]
        findings: list[Finding] = found["findings"]
        return findings

    def amiss(self, node: str) -> list[Finding]:
        """The findings that are not fine."""
        return [one for one in self.of(node) if one["level"] != "ok"]

    def only(self, node: str) -> Finding:
        """The one thing that is not fine, on the one node where something is not."""
        found = [
            (one["node"], it) for one in self.document["nodes"] for it in self.amiss(one["node"])
        ]
        assert [name for name, _ in found] == [node], found
        return found[0][1]


@pytest.fixture(scope="module")
def doctor(lab: Lab) -> Callable[..., Examined]:
    def run(*arguments: str) -> Examined:
        done = Command(lab.name).here("doctor", "-o", "json", *arguments)
        assert done.exit_code in (0, 1), done.output
        return Examined(done.exit_code, json.loads(done.stdout))

    return run


@pytest.fixture
def node(lab: Lab) -> LabNode:
    """The node that is disturbed."""
    return lab.node("node2")


@pytest.fixture
def held(lab: Lab, node: LabNode) -> Iterator[LabNode]:
    """That node, whose agent mends nothing for the time of the test."""
    agent(lab, "hold", node.name)
    yield node
    agent(lab, "resume", node.name)
    until(lambda: plan_is_empty(lab, node.name), "all is as desired again")


def agent(lab: Lab, verb: str, name: str) -> None:
    done = Command(lab.name).here("agent", verb, "--node", name)
    assert done.exit_code == 0, done.output


def plan_is_empty(lab: Lab, name: str) -> bool:
    return Command(lab.name).here("plan", "--node", name).exit_code == 0


@contextmanager
def disturbed(node: LabNode, line: str, undo: str) -> Iterator[None]:
    node.exec(["sh", "-ec", line], check=True)
    try:
        yield
    finally:
        node.exec(["sh", "-ec", undo], check=True)


def on_underlay(lab: Lab, line: str) -> None:
    command = ["ip", "netns", "exec", lab.info.underlay, "sh", "-ec", line]
    subprocess.run(command, check=True)


# --- a healthy lab ----------------------------------------------------------------------------


def test_a_fresh_lab_is_healthy_in_every_respect(doctor: Callable[..., Examined]) -> None:
    examined = doctor()
    assert examined.code == 0
    assert examined.document["healthy"] is True
    for name in ("node1", "node2", "node3"):
        assert examined.amiss(name) == []
        assert [one["check"] for one in examined.of(name)] == list(CHECKS)


def test_only_what_is_asked_for_is_examined(doctor: Callable[..., Examined]) -> None:
    examined = doctor("--node", "node3", "--check", "mtu", "--check", "clock")
    assert [one["node"] for one in examined.document["nodes"]] == ["node3"]
    assert [one["check"] for one in examined.of("node3")] == ["mtu", "clock"]


# --- desired against actual -------------------------------------------------------------------

DIFFERENCES = [
    ("ip route del 10.244.1.0/24", "route 10.244.1.0/24 is missing", "ip route add 10.244.1.0/24"),
    (
        "ip route replace 10.244.1.0/24 dev lo proto 112",
        "route 10.244.1.0/24 is not as it should be",
        "ip route replace 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink",
    ),
    (
        "ip route add 10.244.9.0/24 dev lo proto 112",
        "route 10.244.9.0/24 should not be there",
        "ip route del 10.244.9.0/24",
    ),
    (
        "ip neigh del 10.244.1.0 dev flannel.1",
        "neighbour 10.244.1.0 is missing",
        "ip neigh replace 10.244.1.0 lladdr",
    ),
    (
        "bridge fdb del {mac} dev flannel.1",
        "FDB entry {mac} is missing",
        "bridge fdb replace {mac}",
    ),
    (
        "ip address del 10.244.2.1/24 dev cni0",
        "address 10.244.2.1/24 is missing",
        "ip address replace 10.244.2.1/24 dev cni0 brd +",
    ),
    (
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl net.ipv4.ip_forward is not as it should be",
        "sysctl -w net.ipv4.ip_forward=1",
    ),
    ("ip link set cni0 down", "link cni0 is not as it should be", "ip link set cni0 up"),
    ("ip link del cni0", "link cni0 is missing", "ip link add cni0 group 7077"),
    ("nft delete table inet podwire", "nft table podwire is not as it should be", "nft -f - <<"),
]


def test_each_difference_is_told_with_the_line_that_mends_it_and_mended(
    lab: Lab, held: LabNode, doctor: Callable[..., Examined]
) -> None:
    annotations = lab.node_object("node1")["metadata"]["annotations"]
    mac = json.loads(annotations["flannel.alpha.coreos.com/backend-data"])["VtepMAC"]
    arguments = ("--node", held.name, "--check", "desired")
    for line, text, mended_by in DIFFERENCES:
        held.exec(["sh", "-ec", line.format(mac=mac)], check=True)
        broken = doctor(*arguments)
        assert broken.code == 1, line
        finding = broken.amiss(held.name)[0]
        assert finding["text"] == text.format(mac=mac)
        assert finding["lines"][0].startswith(mended_by.format(mac=mac))
        assert "held" in finding["remedy"] or len(broken.amiss(held.name)) > 1
        fixed = doctor(*arguments, "--fix")
        assert fixed.code == 0, line
        assert all(one["fixed"] for one in fixed.amiss(held.name))
    assert [one["level"] for one in doctor(*arguments).of(held.name)] == ["ok"]


def test_a_node_that_is_held_says_so(held: LabNode, doctor: Callable[..., Examined]) -> None:
    examined = doctor("--node", held.name)
    finding = examined.only(held.name)
    assert (finding["check"], finding["level"]) == ("agent", "warn")
    assert finding["lines"] == ["podwire agent resume --node node2"]
    assert examined.code == 0, "a warning is not an illness"


def test_where_a_peer_is_the_reason_its_doctor_is_named(
    held: LabNode, doctor: Callable[..., Examined]
) -> None:
    held.exec(["ip", "neigh", "flush", "dev", "flannel.1", "nud", "permanent"], check=True)
    examined = doctor("--check", "desired", "--check", "tunnel")
    for name in ("node1", "node3"):
        (finding,) = examined.amiss(name)
        assert finding["peer"] == held.name
        assert finding["remedy"] == "first mend node2, see `desired` there"
    tunnel = [one for one in examined.amiss(held.name) if one["check"] == "tunnel"]
    assert {one["remedy"] for one in tunnel} == {
        "first what this node holds has to be as it should be: see `desired`"
    }


def test_a_foreign_link_in_the_way_is_told_and_left(
    lab: Lab, node: LabNode, doctor: Callable[..., Examined]
) -> None:
    agent(lab, "hold", node.name)
    line = "ip link del flannel.1; ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0"
    with disturbed(node, line, "ip link del flannel.1"):
        agent(lab, "resume", node.name)
        examined = doctor("--node", node.name, "--fix")
        found = {one["check"]: one for one in examined.amiss(node.name)[::-1]}
        assert "exists and was not made by Podwire" in found["agent"]["text"]
        assert "exists and was not made by Podwire" in found["desired"]["text"]
        assert found["leftovers"]["lines"] == ["ip link del flannel.1"]
        assert not any(one["fixed"] for one in examined.amiss(node.name))
    until(lambda: plan_is_empty(lab, node.name), "the agent has made its own")
    lab.wait_ready()


# --- the way between the nodes ----------------------------------------------------------------

DROP = """nft 'add table inet fw; add chain inet fw in {{ type filter hook input priority 0; }};
add rule inet fw in {rule} drop'"""
NFT_UNDO = "nft delete table inet fw"


def test_a_firewall_between_the_nodes(lab: Lab, doctor: Callable[..., Examined]) -> None:
    on_underlay(
        lab,
        "nft 'add table bridge fw; add chain bridge fw f { type filter hook forward priority 0; };"
        " add rule bridge fw f ip daddr 172.18.0.12 udp dport 8472 drop'",
    )
    try:
        examined = doctor()
    finally:
        on_underlay(lab, "nft delete table bridge fw")
    assert examined.code == 1
    assert [one["peer"] for one in examined.amiss("node2")] == ["node1", "node3"]
    (finding,) = examined.amiss("node1")
    assert (finding["check"], finding["peer"]) == ("tunnel", "node2")
    assert finding["text"] == (
        "node2 answers at 172.18.0.12, and not at 10.244.2.0 through flannel.1"
    )
    assert "UDP 8472 does not get through between 172.18.0.11 and 172.18.0.12" in finding["remedy"]


@pytest.mark.parametrize(
    ("line", "undo", "words", "lines"),
    [
        (
            DROP.format(rule="udp dport 8472"),
            NFT_UNDO,
            "a rule in inet fw in: udp dport 8472 drop",
            ["nft delete rule inet fw in handle 2"],
        ),
        (
            "iptables -A INPUT -p udp -m multiport --dports 8472,4789 -j DROP",
            "iptables -F",
            "a rule in iptables INPUT: meta l4proto udp udp dport { 8472, 4789 } drop",
            ["iptables -I INPUT -p udp --dport 8472 -j ACCEPT"],
        ),
        (
            "iptables-legacy -P OUTPUT DROP; iptables-legacy -A OUTPUT -p icmp -j ACCEPT",
            "iptables-legacy -F; iptables-legacy -P OUTPUT ACCEPT",
            "the policy of iptables-legacy OUTPUT",
            ["iptables-legacy -I OUTPUT -p udp --dport 8472 -j ACCEPT"],
        ),
    ],
    ids=["nft", "iptables", "iptables-legacy"],
)
def test_a_firewall_on_the_node_is_named(
    node: LabNode,
    doctor: Callable[..., Examined],
    line: str,
    undo: str,
    words: str,
    lines: list[str],
) -> None:
    with disturbed(node, line, undo):
        rule, *peers = doctor("--node", node.name, "--check", "tunnel").amiss(node.name)
    assert rule["text"].startswith("UDP 8472 ")
    assert rule["text"].endswith(f"is dropped on this node by {words}")
    assert rule["lines"] == lines
    assert [one["peer"] for one in peers] == ["node1", "node3"]


def test_a_program_that_has_the_port(
    lab: Lab, node: LabNode, doctor: Callable[..., Examined]
) -> None:
    agent(lab, "hold", node.name)
    node.exec(["ip", "link", "del", "flannel.1"], check=True)
    holding = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
    holding += "; s.bind(('', 8472)); print(flush=True); input()"
    squatter = node.popen([sys.executable, "-c", holding], stdin=subprocess.PIPE)
    try:
        assert squatter.stdout is not None
        squatter.stdout.readline()
        agent(lab, "resume", node.name)
        found = doctor("--node", node.name, "--check", "tunnel").amiss(node.name)
    finally:
        squatter.kill()
        squatter.communicate()
        until(lambda: plan_is_empty(lab, node.name), "the agent has its device again")
        lab.wait_ready()
    assert "UDP port 8472 is held by python" in found[0]["text"]


def test_a_network_that_carries_less_than_it_says(
    lab: Lab, doctor: Callable[..., Examined]
) -> None:
    on_underlay(lab, "ip link set node2 mtu 1400")
    try:
        examined = doctor("--node", "node1", "--check", "mtu", "--check", "tunnel")
    finally:
        on_underlay(lab, "ip link set node2 mtu 1500")
    finding = examined.only("node1")
    # A veth lets a VLAN tag's bytes more pass than its MTU.
    assert finding["text"] in {
        f"the network to node2 carries packets of {size} bytes, not the 1500 of eth0:"
        " larger ones vanish"
        for size in range(1400, 1405)
    }
    assert finding["lines"][0].startswith("ip link set dev eth0 mtu 140")


def test_pods_with_a_larger_mtu_than_the_tunnel(
    lab: Lab, node: LabNode, doctor: Callable[..., Examined]
) -> None:
    lab.run("large", node=node.name).wait_ready()
    with disturbed(node, "ip link set eth0 mtu 1480", "ip link set eth0 mtu 1500"):
        until(lambda: "mtu 1430" in node.exec(["ip", "link"]).stdout, "the agent has noticed")
        finding = doctor("--node", node.name, "--check", "mtu").only(node.name)
    assert finding["level"] == "warn"
    assert finding["text"] == (
        "default/large (1450) has a larger MTU than the way to other nodes, which carries 1430"
    )


def test_tcp_that_does_not_pass_the_tunnel(node: LabNode, doctor: Callable[..., Examined]) -> None:
    with disturbed(node, DROP.format(rule="iifname flannel.1 meta l4proto tcp"), NFT_UNDO):
        finding = doctor("--node", "node1").only("node1")
    assert (finding["check"], finding["level"]) == ("offload", "warn")
    assert "TCP does not" in finding["text"]
    assert finding["lines"] == [
        "ethtool -K flannel.1 tx-checksum-ip-generic off",
        "ethtool -K eth0 tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off",
    ]


# --- the node ---------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["iptables", "iptables-legacy"])
def test_a_forward_policy_that_drops(
    node: LabNode, doctor: Callable[..., Examined], program: str
) -> None:
    with disturbed(node, f"{program} -P FORWARD DROP", f"{program} -P FORWARD ACCEPT"):
        finding = doctor().only(node.name)
        assert finding["check"] == "forwarding"
        assert f"is dropped by the policy of {program} FORWARD" in finding["text"]
        assert "to other nodes, from other nodes, to outside" in finding["text"]
        node.exec(["sh", "-ec", "; ".join(finding["lines"])], check=True)
        assert doctor().code == 0, "the lines mend it"
        node.exec([program, "-F"], check=True)


def test_a_reverse_path_filter_that_is_strict(
    node: LabNode, doctor: Callable[..., Examined]
) -> None:
    strict = "sysctl -qw net.ipv4.conf.all.rp_filter=1"
    with disturbed(node, strict, "sysctl -qw net.ipv4.conf.all.rp_filter=0"):
        warning = doctor("--node", node.name).only(node.name)
        assert warning["level"] == "warn"
        assert warning["lines"] == ["sysctl -w net/ipv4/conf/flannel.1/rp_filter=2"]
        with disturbed(
            node, "ip route add 172.18.0.11 dev cni0", "ip route del 172.18.0.11 dev cni0"
        ):
            examined = doctor("--node", node.name, "--check", "forwarding")
    assert examined.amiss(node.name)[0]["level"] == "fail"
    assert examined.amiss(node.name)[0]["text"] == (
        "the reverse-path filter of eth0 drops what comes from node1 with a node's own address"
    )


def test_an_interface_that_does_not_forward(node: LabNode, doctor: Callable[..., Examined]) -> None:
    key = "net.ipv4.conf.cni0.forwarding"
    with disturbed(node, f"sysctl -qw {key}=0", f"sysctl -qw {key}=1"):
        finding = doctor("--node", node.name).only(node.name)
    assert finding["text"] == "what arrives at cni0 is not forwarded"
    assert finding["lines"] == [f"sysctl -w {key}=1"]


@pytest.mark.parametrize(
    ("line", "undo", "level", "words"),
    [
        (
            "ip route add 10.244.1.128/25 via 172.18.0.1",
            "ip route del 10.244.1.128/25",
            "fail",
            "the route 10.244.1.128/25 dev eth0 takes what is for node1's pods",
        ),
        (
            "ip route add blackhole 10.244.2.64/26",
            "ip route del blackhole 10.244.2.64/26",
            "fail",
            "the route 10.244.2.64/26 takes what is for node2's pods",
        ),
        (
            "ip link add docker0 type bridge; ip address add 10.244.77.1/24 dev docker0;"
            " ip link set docker0 up",
            "ip link del docker0",
            "warn",
            "the route 10.244.77.0/24 dev docker0 is inside of the pod network",
        ),
        (
            "ip route add 10.244.1.0/24 dev lo table 77; ip rule add to 10.244.1.0/24 lookup 77",
            "ip rule del to 10.244.1.0/24 lookup 77; ip route flush table 77",
            "fail",
            "what is for node1's pods (10.244.1.0/24) goes to lo, by routing table 77",
        ),
    ],
    ids=["more-specific", "blackhole", "unleased", "rule"],
)
def test_routes_that_overlap(
    node: LabNode,
    doctor: Callable[..., Examined],
    line: str,
    undo: str,
    level: str,
    words: str,
) -> None:
    with disturbed(node, line, undo):
        finding = doctor("--node", node.name, "--check", "overlap").only(node.name)
    assert finding["level"] == level
    assert finding["text"].startswith(words)


def test_routes_that_do_no_harm(node: LabNode, doctor: Callable[..., Examined]) -> None:
    line = "ip route add 10.0.0.0/8 via 172.18.0.1; ip route add 192.168.0.0/16 via 172.18.0.1"
    undo = "ip route del 10.0.0.0/8; ip route del 192.168.0.0/16"
    with disturbed(node, line, undo):
        assert doctor("--node", node.name).amiss(node.name) == []


def test_what_other_plugins_have_left(node: LabNode, doctor: Callable[..., Examined]) -> None:
    made = (
        "ip link add cali0123 type veth peer name weave",
        "iptables -N cali-FORWARD",
        "iptables-legacy -N FLANNEL-FWD",
        "nft add table ip flannel-ipv4",
        "nft add chain ip flannel-ipv4 x",
        """echo '{"type": "calico"}' > /etc/cni/net.d/05-calico.conf""",
        """echo '{"plugins": [{"type": "loopback"}]}' > /etc/cni/net.d/99-loopback.conflist""",
    )
    undo = (
        "ip link del cali0123",
        "iptables -X",
        "iptables-legacy -X",
        "nft delete table ip flannel-ipv4",
        "rm /etc/cni/net.d/05-calico.conf /etc/cni/net.d/99-loopback.conflist",
    )
    with disturbed(node, "; ".join(made), "; ".join(undo)):
        found = doctor("--node", node.name).amiss(node.name)
    assert {one["check"] for one in found} == {"leftovers"}
    texts = sorted(one["text"] for one in found)
    assert texts == [
        "Calico has left firewall chains: iptables cali-FORWARD",
        "Calico has left links: cali0123",
        "Flannel has left firewall chains: iptables-legacy FLANNEL-FWD",
        "Flannel has left in nft: table ip flannel-ipv4",
        "Weave Net has left links: weave",
        "runtimes take /etc/cni/net.d/05-calico.conf (calico), which sorts before"
        " 10-podwire.conflist: pods get another network",
    ]
    assert [one["level"] for one in found if "runtimes" in one["text"]] == ["fail"]


def test_a_multus_before_us_is_rightly_there(
    node: LabNode, doctor: Callable[..., Examined]
) -> None:
    conf = "/etc/cni/net.d/00-multus.conf"
    with disturbed(node, f"""echo '{{"type": "multus"}}' > {conf}""", f"rm {conf}"):
        assert doctor("--node", node.name, "--check", "leftovers").code == 0


def test_a_plugin_that_was_removed(node: LabNode, doctor: Callable[..., Examined]) -> None:
    plugin = "/opt/cni/bin/podwire"
    with disturbed(node, f"mv {plugin} {plugin}.away", f"mv {plugin}.away {plugin}"):
        finding = doctor("--node", node.name).only(node.name)
    assert finding["text"] == f"the CNI executable {plugin} is not there"


# --- an agent that can't be asked -------------------------------------------------------------


def test_an_agent_that_hangs_is_a_finding_and_the_others_go_on(
    lab: Lab, node: LabNode, doctor: Callable[..., Examined]
) -> None:
    pid = node.process("agent").pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        examined = doctor()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert examined.code == 1
    finding = examined.only(node.name)
    assert finding["text"].startswith("the agent of node2 does not answer; ")
    assert "to the lab's supervisor its process is ready" in finding["text"]


def test_an_agent_that_has_never_been_there(lab: Lab, doctor: Callable[..., Examined]) -> None:
    """A node whose machine is missing: it has an object, and no lease."""
    lab.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node9"}})
    try:
        until(
            lambda: (
                "node9 has published no lease"
                in " ".join(one["text"] for one in doctor("--node", "node1").amiss("node1"))
            ),
            "the agents have seen it",
        )
    finally:
        lab.call(lambda client: client.delete(NODES, "node9"))
    until(lambda: doctor("--check", "tunnel").code == 0, "it is gone")


# --- for a person -----------------------------------------------------------------------------


def test_as_text(held: LabNode, lab: Lab) -> None:
    held.exec(["ip", "route", "del", "10.244.1.0/24"], check=True)
    command = [str(PODWIRE), "--lab", lab.name, "doctor", "--node", held.name]
    command += ["--check", "desired", "--check", "overlap"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "node2: 1 problem",
        "  ✗ desired     route 10.244.1.0/24 is missing",
        "                # Node/node1 leases 10.244.1.0/24",
        "                ip route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink proto 112",
        "                → the agent is held: `podwire agent resume --node node2` has it mend this,"
        " `podwire doctor --fix` too",
        "  ✓ overlap     nothing overlaps 10.244.0.0/16",
        "",
        "1 node examined: not healthy: node2",
    ]
