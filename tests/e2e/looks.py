"""What a user of each system finds on a node and in a pod: the expectations, one by one.

A `Look` is what one fabric in one family looks like; `amiss` compares a lab with it and gives one
sentence for each thing that is not so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from podwire.lab import Lab, LabNode, LabPod

from .waiting import until

#: Pings each argument in turn, once: for further answers after a first one, ping(8) waits no longer
#: than two round trips, which a busy machine exceeds.
_PING_EACH = 'for target; do ping -n -c 1 -W 10 "$target"; done'

#: What a hop at each node takes off a packet's TTL between two pods of different nodes.
LAYER_3, LAYER_2, USER_SPACE = 62, 64, 60


@dataclass(frozen=True)
class Look:
    """`ttl` is a packet's that comes from a pod of another node; `devices` are on each node, with
    their MTUs (None: whatever it is); `routes` is what the route to a remote subnet must match."""

    mtu: int
    ttl: int
    port_prefix: str
    devices: Mapping[str, int | None]
    same_node_ttl: int = 64
    prefix_len: Mapping[int, int] = field(default_factory=lambda: {4: 24, 6: 64})
    routed: bool = False
    routes: Mapping[int, str] = field(default_factory=dict)


def places(lab: Lab, pods: Mapping[str, LabPod]) -> dict[str, LabPod | LabNode]:
    return {**pods, **{node.name: node for node in lab.nodes}}


def unreached(
    lab: Lab, pods: Mapping[str, LabPod], look: Look, far: Mapping[str, int]
) -> list[str]:
    """Who does not reach whom, or with another TTL than expected: pods and nodes, all pairs.

    `far` are the TTLs of what comes from pods of other nodes, by node, where they differ.
    """
    everybody = places(lab, pods)
    addresses = {name: one.ips for name, one in everybody.items()}

    def ping(source: str) -> list[str]:
        targets = [(name, ip) for name, ips in addresses.items() for ip in ips if name != source]
        script = ["bash", "-c", _PING_EACH, "sh", *(ip for _, ip in targets)]
        done = everybody[source].exec(script, timeout_s=120)
        found = _answers(done.stdout)
        problems = []
        for name, ip in targets:
            ttls = found.get(ip, [])
            if not ttls:
                problems.append(f"{source} gets no answer of {name} at {ip}")
                continue
            expected = _ttl(everybody[source], everybody[name], look, far)
            if expected is not None and set(ttls) != {expected}:
                problems.append(f"{name} at {ip} answers {source} with TTL {ttls}, not {expected}")
        return problems

    with ThreadPoolExecutor(4) as pool:
        return [problem for found in pool.map(ping, everybody) for problem in found]


def _answers(output: str) -> dict[str, list[int]]:
    return {
        block.split()[0].split("(")[0]: [int(ttl) for ttl in re.findall(r" ttl=(\d+)", block)]
        for block in output.split("PING ")[1:]
    }


def _node(place: LabPod | LabNode) -> str:
    return place.name if isinstance(place, LabNode) else place.node.name


def _ttl(
    source: LabPod | LabNode, target: LabPod | LabNode, look: Look, far: Mapping[str, int]
) -> int | None:
    """The TTL of an answer; None where it is a matter of the underlay."""
    if isinstance(target, LabNode):
        return None
    if isinstance(source, LabNode):
        if source.name == _node(target):
            return 64
        return None
    if _node(source) == _node(target):
        return look.same_node_ttl
    return far.get(_node(target), look.ttl) if _node(source) == "node1" else None


def amiss(lab: Lab, pods: Mapping[str, LabPod], look: Look) -> list[str]:
    """What of a fabric's look is not found, one sentence each."""
    found = []
    for name, pod in pods.items():
        found += [f"pod {name}: {text}" for text in _pod_amiss(pod, look)]
    for node in lab.nodes:
        found += [f"{node.name}: {text}" for text in _node_amiss(node, look)]
    return found


def _json(place: LabPod | LabNode, *words: str) -> Any:
    return json.loads(place.exec(["ip", "-j", *words], check=True).stdout or "[]")


def _pod_amiss(pod: LabPod, look: Look) -> Iterator[str]:
    (link,) = _json(pod, "addr", "show", "dev", "eth0")
    if link["mtu"] != look.mtu:
        yield f"eth0 has MTU {link['mtu']}, not {look.mtu}"
    held = {one["local"]: one["prefixlen"] for one in link["addr_info"] if one["scope"] == "global"}
    for ip in pod.ips:
        version = ip_address(ip).version
        if held.get(ip) != look.prefix_len[version]:
            yield f"has {ip}/{held.get(ip)}, not /{look.prefix_len[version]}"
        (default,) = [one for one in _json(pod, f"-{version}", "route") if one["dst"] == "default"]
        gateway = default.get("gateway")
        if look.routed:
            wanted = {4: "169.254.1.1", 6: "fe80::ecee:eeff:feee:eeee"}[version]
            if gateway != wanted:
                yield f"has default via {gateway}, not {wanted}"
            until(
                lambda: "ee:ee:ee:ee:ee:ee" in pod.exec(["ip", "neigh"]).stdout,
                f"{pod.name} knows its gateway's MAC",
            )
        elif ip_address(gateway) not in {ip_address(one) for one in _bridge_ips(pod.node)}:
            yield f"has default via {gateway}, which is not its node's bridge"
    if look.routed and any("." in ip for ip in pod.ips):
        on_link = [one for one in _json(pod, "-4", "route") if one["dst"] == "169.254.1.1"]
        if [one.get("scope") for one in on_link] != ["link"]:
            yield f"has no 169.254.1.1 dev eth0 scope link: {on_link}"


def _bridge_ips(node: LabNode) -> list[str]:
    return [
        address["local"]
        for link in _json(node, "addr", "show", "type", "bridge")
        for address in link.get("addr_info", ())
    ]


def _node_amiss(node: LabNode, look: Look) -> Iterator[str]:
    links = {link["ifname"]: link for link in _json(node, "link")}
    for name, mtu in look.devices.items():
        if name not in links:
            yield f"has no {name}, but {sorted(links)}"
        elif mtu is not None and links[name]["mtu"] != mtu:
            yield f"{name} has MTU {links[name]['mtu']}, not {mtu}"
    bridges = [link["ifname"] for link in _json(node, "link", "show", "type", "bridge")]
    if look.routed and bridges:
        yield f"has the bridge {bridges}, and pods are routed"
    ports = [name for name in links if name.startswith(look.port_prefix)]
    if not ports:
        yield f"has no {look.port_prefix}…, but {sorted(links)}"
    for port in ports if look.routed else ():
        if links[port]["address"] != "ee:ee:ee:ee:ee:ee":
            yield f"{port} has MAC {links[port]['address']}"
    for version, pattern in look.routes.items():
        routes = node.exec(["ip", f"-{version}", "route"], check=True).stdout
        if not re.search(pattern, routes, re.MULTILINE):
            yield f"has no route like {pattern}:\n{routes}"
