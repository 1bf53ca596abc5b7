"""The underlay: the links between a lab's nodes, in a network namespace of their own.

What lives here: making the namespace, its bridges and the nodes' ends, and cutting nodes off. Each
function may be run again after a crash and completes what is missing. What does not: addresses
(`addressing`), the faults themselves (`faults`).

    l2       netns LAB-underlay                    netns LAB-node1
             bridge underlay 172.18.0.1/16 ──veth── eth0 172.18.0.11/16, default via 172.18.0.1

    routed   bridge underlay1 172.18.1.1/24 ──veth── eth0 172.18.1.11/24, default via 172.18.1.1
                │ routing
             bridge underlay2 172.18.2.1/24 ──veth── eth0 172.18.2.12/24, default via 172.18.2.1
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from podwire.errors import KernelError, LabError
from podwire.kernel.netns import entered, is_netns, open_netns
from podwire.lab import addressing, faults
from podwire.lab import namespaces as ns
from podwire.lab.registry import NETNS_DIR, UNDERLAY_MTU, LabInfo, LabRecord, NodeRecord

#: IPv6 addresses can be used at once: nobody else is there to have them.
_NO_DAD = {
    f"net/ipv6/conf/{scope}/{key}": value
    for scope in ("all", "default")
    for key, value in (("accept_dad", "0"), ("dad_transmits", "0"))
}
_ROUTER = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
}


def ip(*arguments: str, netns: str | None = None, batch: Iterable[str] = ()) -> str:
    """Run ip(8) in a named namespace, perhaps with a batch of commands; return what it printed."""
    lines = list(batch)
    command = ["ip", *(["-n", netns] if netns else []), *(["-batch", "-"] if lines else [])]
    done = subprocess.run(
        [*command, *arguments], input="\n".join(lines), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise LabError(f"{' '.join([*command, *arguments])}: {done.stderr.strip()}")
    return done.stdout


def is_up(name: str) -> bool:
    """Whether a network namespace has this name (a file left over from before a boot has not)."""
    try:
        fd = os.open(NETNS_DIR / name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_netns(fd)
    finally:
        os.close(fd)


def make_netns(names: Iterable[str]) -> list[str]:
    """See to it that each name is a network namespace's; those that were not are returned."""
    missing = [name for name in names if not is_up(name)]
    for name in missing:
        (NETNS_DIR / name).unlink(missing_ok=True)
    if missing:
        ip(batch=[f"netns add {name}" for name in missing])
    return missing


def remove_netns(name: str) -> None:
    """Take a namespace's name away; it ends with the last process in it."""
    path = NETNS_DIR / name
    with suppress(KernelError):
        ns.detach(path)
    path.unlink(missing_ok=True)


def wire(lab: LabInfo, record: LabRecord, nodes: Iterable[NodeRecord]) -> None:
    """Make the underlay and join these nodes to it, where that is not done yet."""
    nodes = list(nodes)
    made = make_netns([lab.underlay, *(lab.netns(node.name) for node in nodes)])
    for name in made:
        _set(name, _NO_DAD | (_ROUTER if name == lab.underlay else {}))
    links = msgspec.json.decode(ip("-j", "link", netns=lab.underlay))
    present = {link["ifname"] for link in links}
    commands = []
    for segment in addressing.segments(record.shape.underlay, record.shape.underlay_versions):
        if segment.bridge not in present:
            commands += _bridge(segment)
    joining = [node for node in nodes if node.name not in present]
    for node in joining:
        segment = record.segment(node)
        commands += [
            f"link add {node.name} mtu {UNDERLAY_MTU} type veth peer name eth0"
            f" address {record.mac(node)} mtu {UNDERLAY_MTU} netns {lab.netns(node.name)}",
            f"link set {node.name} master {segment.bridge} up",
        ]
    if commands:
        ip(netns=lab.underlay, batch=commands)
    for node in joining:
        routers = record.segment(node).routers
        ip(
            netns=lab.netns(node.name),
            batch=[
                "link set lo up",
                *(f"address add {address} dev eth0" for address in record.addresses(node)),
                "link set eth0 up",
                *(f"route add default via {router.ip}" for router in routers),
            ],
        )


def _bridge(segment: addressing.Segment) -> list[str]:
    name = segment.bridge
    return [
        "link set lo up",
        # With an address of its own the bridge does not change its MAC with each port.
        f"link add {name} address {segment.mac} mtu {UNDERLAY_MTU} type bridge",
        *(f"address add {router} dev {name}" for router in segment.routers),
        f"link set {name} up",
    ]


def unplug(lab: LabInfo, node: str) -> None:
    """Take a node off the underlay: its link is gone at once, at both ends."""
    with suppress(LabError):
        ip("link", "delete", node, netns=lab.underlay)
    remove_netns(lab.netns(node))


def _set(netns: str, values: dict[str, str]) -> None:
    """Set keys below /proc/sys in a named namespace."""
    fd = open_netns(NETNS_DIR / netns)
    try:
        with entered(fd):
            for key, value in values.items():
                # What a kernel does not have (IPv6 switched off) needs no setting.
                with suppress(FileNotFoundError):
                    Path("/proc/sys", key).write_text(value)
    finally:
        os.close(fd)


def cut(lab: LabInfo, record: LabRecord) -> None:
    """Cut off from each other the nodes that the record has cut off, and no others."""
    port = faults.ETCD_PORT if record.shape.store == "etcd" else None
    indexes = {node.name: node.index for node in record.nodes}
    rules = faults.ruleset(record.faults, indexes, port)
    if not rules and not lab.partitions.exists():
        return
    # The table is declared first, so that there is something to delete.
    lines = f"table {faults.TABLE}\ndelete table {faults.TABLE}\n{rules}"
    lab.partitions.touch()
    done = subprocess.run(
        ["nsenter", f"--net={NETNS_DIR / lab.underlay}", "nft", "-f", "-"],
        input=lines,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(
            f"nft in the underlay: {done.stderr.strip()}",
            remedy="partitions need a kernel with nftables for bridges (CONFIG_NF_TABLES_BRIDGE)",
        )
    if not rules:
        lab.partitions.unlink()
