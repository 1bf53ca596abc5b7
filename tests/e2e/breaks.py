"""Ways to break a pod network, and what a trace has to say of each.

What lives here: the breaks, as shell lines for a node, and what is expected. The tests break a lab
whose agents hold, trace, and let the agents mend it.

In the lines, `{near}` is node1's and `{far}` node2's pod subnet, `{base}` the VTEP's address of
node2, `{mac}` its MAC, `{port}` the node's end of the target's cable, `{vtep3}` the underlay
address of node3.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Break:
    """One trouble. `lines` are shell lines by where they run: `node1`, `node2`, `underlay`, or the
    pods `a` (on node1) and `b` (on node2); `undo` takes back what no agent mends.

    The trace goes from pod `a` to `target` with `options`. `causes` are right answers, `where`
    are words that its place must have, `says` words of its text, remedy or evidence. `reason` is
    the kernel's own word for it where it has one.
    """

    name: str
    causes: tuple[str, ...]
    where: tuple[str, ...]
    lines: dict[str, str] = field(default_factory=dict)
    undo: dict[str, str] = field(default_factory=dict)
    target: str = "b"
    options: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    outcome: str = "dropped"
    reason: str | None = None

    def __str__(self) -> str:
        return self.name


def _rule(chain: str, hook: str, rule: str, family: str = "inet") -> str:
    hooked = f"type filter hook {hook} priority 0"
    return (
        f"nft add table {family} theirs; "
        f"nft 'add chain {family} theirs {chain} {{ {hooked} ; }}'; "
        f"nft 'add rule {family} theirs {chain} {rule}'"
    )


_NO_RULES = "nft delete table inet theirs"

BREAKS = [
    Break(
        name="missing route",
        lines={"node1": "ip route del {far}"},
        causes=("no-route",),
        where=("node1",),
        says=("{far}", "ip route"),
    ),
    Break(
        name="missing route and no default",
        lines={"node1": "ip route del {far}; ip route del default"},
        undo={"node1": "ip route replace default via 172.18.0.1"},
        causes=("no-route",),
        where=("node1",),
        says=("{far}", "ip route"),
    ),
    Break(
        name="missing route in the pod",
        lines={"a": "ip route del default; ip route del 10.244.0.0/16"},
        undo={"a": "ip route add default via {gateway}; ip route add 10.244.0.0/16 via {gateway}"},
        causes=("no-route",),
        where=("default/a",),
    ),
    Break(
        name="missing FDB entry",
        lines={"node1": "bridge fdb del {mac} dev flannel.1"},
        causes=("no-fdb",),
        where=("node1", "flannel.1"),
        says=("{mac}", "bridge fdb"),
    ),
    Break(
        name="wrong FDB entry",
        lines={"node1": "bridge fdb replace {mac} dev flannel.1 dst {vtep3}"},
        causes=("wrong-fdb",),
        where=("node1", "flannel.1"),
        says=("{vtep3}", "bridge fdb"),
    ),
    Break(
        name="FDB entry to nobody",
        lines={"node1": "bridge fdb replace {mac} dev flannel.1 dst 172.18.0.99"},
        causes=("wrong-fdb",),
        where=("node1", "flannel.1"),
        says=("172.18.0.99",),
    ),
    Break(
        name="missing neighbour",
        lines={"node1": "ip neigh del {base} dev flannel.1"},
        causes=("no-neighbor",),
        where=("node1", "flannel.1"),
        says=("{base}", "ip neigh"),
    ),
    Break(
        name="wrong neighbour",
        lines={
            "node1": "ip neigh replace {base} lladdr 02:00:00:00:00:bb dev flannel.1 nud permanent"
        },
        causes=("wrong-neighbor",),
        where=("node1", "flannel.1"),
        says=("{mac}", "ip neigh"),
    ),
    Break(
        name="forwarding off",
        lines={"node1": "sysctl -qw net.ipv4.ip_forward=0"},
        causes=("not-forwarding",),
        where=("node1",),
        says=("ip_forward",),
    ),
    Break(
        name="forwarding off at the far node",
        lines={"node2": "sysctl -qw net.ipv4.ip_forward=0"},
        causes=("not-forwarding",),
        where=("node2",),
        says=("ip_forward",),
    ),
    Break(
        name="nft rule on the way",
        lines={
            "node1": _rule(
                "fw", "forward", 'ip daddr {far} icmp type echo-request drop comment "lunch"'
            )
        },
        undo={"node1": _NO_RULES},
        causes=("nft",),
        where=("node1",),
        says=("theirs", "fw", "lunch", "echo-request"),
        reason="NETFILTER_DROP",
    ),
    Break(
        name="nft rule at the far node",
        lines={"node2": _rule("early", "prerouting", "ip protocol icmp drop")},
        undo={"node2": _NO_RULES},
        causes=("nft",),
        where=("node2",),
        says=("theirs", "early"),
        reason="NETFILTER_DROP",
    ),
    Break(
        name="nft rule for the reply",
        lines={"node2": _rule("back", "forward", "icmp type echo-reply drop")},
        undo={"node2": _NO_RULES},
        causes=("nft",),
        where=("node2",),
        says=("theirs", "back", "echo-reply"),
        reason="NETFILTER_DROP",
    ),
    Break(
        name="nft policy",
        lines={
            "node2": "nft add table inet theirs; "
            "nft 'add chain inet theirs closed { type filter hook forward priority 0 ; "
            "policy drop ; }'"
        },
        undo={"node2": _NO_RULES},
        causes=("nft",),
        where=("node2",),
        says=("theirs", "closed", "policy"),
        reason="NETFILTER_DROP",
    ),
    Break(
        name="nft rule in the pod",
        lines={"b": _rule("in", "input", "icmp type echo-request drop")},
        undo={"b": _NO_RULES},
        causes=("nft",),
        where=("default/b",),
        says=("theirs",),
        reason="NETFILTER_DROP",
    ),
    Break(
        name="nft rule on the tunnel",
        lines={"node2": _rule("tunnel", "input", "udp dport 8472 drop")},
        undo={"node2": _NO_RULES},
        causes=("nft",),
        where=("node2", "eth0"),
        says=("theirs", "8472"),
        reason="NETFILTER_DROP",
    ),
    Break(
        name="route of a mark",
        lines={
            "node1": _rule("steer", "prerouting", "ip daddr {far} meta mark set 7")
            + "; ip rule add fwmark 7 lookup 777; ip route add blackhole {far} table 777"
        },
        undo={
            "node1": _NO_RULES
            + "; ip rule del fwmark 7 lookup 777; ip route del blackhole {far} table 777"
        },
        causes=("blackhole",),
        where=("node1",),
        says=("{far}", "777"),
    ),
    Break(
        name="reverse-path filter",
        lines={
            "node2": "sysctl -qw net.ipv4.conf.all.rp_filter=1; "
            "ip route replace {near} via 172.18.0.1"
        },
        undo={
            "node2": "sysctl -qw net.ipv4.conf.all.rp_filter=0; ip route del {near} via 172.18.0.1"
        },
        causes=("rp-filter",),
        where=("node2", "flannel.1"),
        says=("rp_filter", "{near}"),
        reason="IP_RPFILTER",
    ),
    Break(
        name="packet over the MTU of the tunnel",
        lines={"node1": "ip link set flannel.1 mtu 1300"},
        options=("--size", "1400"),
        causes=("too-big",),
        where=("node1", "flannel.1"),
        says=("1300", "1400"),
    ),
    Break(
        name="packet over the MTU of the pod",
        options=("--size", "1451"),
        causes=("too-big",),
        where=("default/a", "eth0"),
        says=("1450", "1451"),
    ),
    Break(
        name="tunnel down",
        lines={"node1": "ip link set flannel.1 down"},
        causes=("link-down",),
        where=("node1", "flannel.1"),
        says=("ip link set",),
    ),
    Break(
        name="tunnel down at the far node",
        lines={"node2": "ip link set flannel.1 down"},
        causes=("link-down",),
        where=("node2", "flannel.1"),
        says=("ip link set",),
    ),
    Break(
        name="tunnel gone",
        lines={"node1": "ip link del flannel.1"},
        causes=("link-missing",),
        where=("node1", "flannel.1"),
    ),
    Break(
        name="bridge down at the far node",
        lines={"node2": "ip link set cni0 down"},
        causes=("link-down",),
        where=("node2", "cni0"),
        says=("ip link set",),
    ),
    Break(
        name="cable of the target down",
        lines={"node2": "ip link set {port} down"},
        causes=("link-down",),
        where=("node2", "{port}"),
        says=("ip link set",),
    ),
    Break(
        name="underlay drops the tunnel",
        lines={
            "underlay": _rule("fw", "forward", "udp dport 8472 drop", family="bridge"),
        },
        undo={"underlay": "nft delete table bridge theirs"},
        causes=("underlay",),
        where=("node1", "node2"),
        says=("8472",),
    ),
    Break(
        name="address not in use",
        target="{unused}",
        causes=("not-in-use",),
        where=("node2", "cni0"),
        says=("ARP", "{unused}"),
    ),
    Break(
        name="address not in use on the same node",
        target="{unused_near}",
        causes=("not-in-use",),
        where=("default/a", "eth0"),
        says=("ARP", "{unused_near}"),
    ),
    Break(
        name="nothing listens, TCP",
        options=("--proto", "tcp", "--port", "81"),
        causes=("refused",),
        where=("default/b",),
        says=("81",),
        outcome="refused",
    ),
    Break(
        name="nothing listens, UDP",
        options=("--proto", "udp", "--port", "81"),
        causes=("refused",),
        where=("default/b",),
        says=("81",),
        outcome="refused",
    ),
    Break(
        name="agent never started",
        target="{unleased}",
        causes=("no-lease",),
        where=("node1",),
        says=("node9",),
    ),
]
