"""What of a fabric's look is not found in pods, and at their ends on the nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from .looks import NOBODY, NOBODYS_MAC, Seen, differs, holds
from .places import Place


def pods_amiss(seen: Seen) -> list[str]:
    """One sentence for each thing; to be asked when everybody has talked to everybody."""
    found = [f"pod {pod.name}: {text}" for pod in seen.pods for text in _amiss(seen, pod)]
    ips = [ip for pod in seen.pods for ip in pod.ips]
    if len(set(ips)) < len(ips):
        found.append(f"two pods have one address: {ips}")
    return found


def _amiss(seen: Seen, pod: Place) -> Iterator[str]:
    look, state = seen.look, seen.states[pod.name]
    port = seen.port(pod)
    yield from differs("the MTU of eth0", state.links["eth0"]["mtu"], look.mtu)
    if not port["ifname"].startswith(look.port_prefix):
        yield f"its other end is {port['ifname']}, and not a {look.port_prefix}…"
    for ip in pod.ips:
        version = ip_address(ip).version
        yield from differs("its address", state.addresses(version), {ip: look.prefix_len[version]})
        if not any(ip_address(ip) in ip_network(one) for one in seen.leases[pod.node].subnets):
            yield f"{ip} is outside of what {pod.node} leases: {seen.leases[pod.node].subnets}"
        defaults = [one for one in state.routes[version] if one["dst"] == "default"]
        (gateway,) = (one["gateway"] for one in defaults)
        if look.routed:
            yield from _routed_amiss(seen, pod, ip, gateway)
        else:
            yield from _bridged_amiss(seen, pod, ip, gateway)
    if look.is_one_segment:
        yield from _segment_amiss(seen, pod)
    if look.port_prefix == "cali":
        # As Calico's: a pod keeps the name of its link, whoever makes it.
        named = hashlib.sha1(f"default.{pod.name}".encode(), usedforsecurity=False).hexdigest()
        yield from differs("its other end", port["ifname"], f"cali{named[:11]}")


def _routed_amiss(seen: Seen, pod: Place, ip: str, gateway: str) -> Iterator[str]:
    state, port, version = seen.states[pod.name], seen.port(pod), ip_address(ip).version
    yield from differs("its gateway", gateway, NOBODY[version])
    yield from differs("its gateway's MAC", state.lladdr(gateway), NOBODYS_MAC)
    yield from differs(f"the MAC of {port['ifname']}", port["address"], NOBODYS_MAC)
    if version == 4 and not holds(state.routes[4], dst=gateway, dev="eth0", scope="link"):
        yield f"has no {gateway} dev eth0 scope link, but {state.routes[4]}"
    scope = {"scope": "link"} if version == 4 else {}
    routes = seen.states[pod.node].routes[version]
    if not holds(routes, dst=ip, dev=port["ifname"], **scope):
        yield f"its node has no {ip} dev {port['ifname']} scope link"


def _bridged_amiss(seen: Seen, pod: Place, ip: str, gateway: str) -> Iterator[str]:
    look, state, version = seen.look, seen.states[pod.name], ip_address(ip).version
    assert look.bridge is not None
    bridge = seen.states[pod.node].links[look.bridge]
    yield from differs("the bridge of its other end", seen.port(pod).get("master"), look.bridge)
    own = [one["local"] for one in bridge["addr_info"]]
    if gateway not in own:
        yield f"its gateway is {gateway}, and its node's bridge has {own}"
    # In one segment nobody else than the gateway's own node need have been asked for.
    known = state.lladdr(gateway) or (bridge["address"] if look.is_one_segment else None)
    yield from differs("its gateway's MAC", known, bridge["address"])
    net = ip_network(f"{ip}/{look.prefix_len[version]}", strict=False)
    if not holds(state.routes[version], dst=str(net), dev="eth0", protocol="kernel"):
        yield f"{net} is not on its link: {state.routes[version]}"


def _segment_amiss(seen: Seen, pod: Place) -> Iterator[str]:
    """Pods know each other's own MACs, across nodes."""
    state = seen.states[pod.name]
    for other in seen.pods:
        for ip in other.ips if other != pod else ():
            mac = seen.states[other.name].links["eth0"]["address"]
            yield from differs(f"the MAC of {other.name}", state.lladdr(ip), mac)
