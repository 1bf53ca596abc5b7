"""What of a fabric's look is not found on nodes: devices, what they hold of each other, leases."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from .looks import NOBODY, Seen, differs, holds
from .places import Entry, Place

#: Flooded frames (bridge(8)).
_EVERYBODY = "00:00:00:00:00:00"
FLANNEL_NETWORK = {4: "10.244.0.0/16", 6: "fd00:10:244::/48"}


def nodes_amiss(seen: Seen) -> list[str]:
    """One sentence for each thing."""
    return [
        *(f"{node.name}: {text}" for node in seen.nodes for text in _amiss(seen, node)),
        *(
            f"{node.name}: {text}"
            for node in seen.nodes
            for peer in seen.nodes
            if peer != node
            for text in _peer_amiss(seen, node, peer)
        ),
    ]


def _amiss(seen: Seen, node: Place) -> Iterator[str]:
    look, state, lease = seen.look, seen.states[node.name], seen.leases[node.name]
    kinds = {name: one.get("linkinfo", {}).get("info_kind") for name, one in state.links.items()}
    bridges = [name for name, kind in kinds.items() if kind == "bridge"]
    yield from differs("its bridges", bridges, [look.bridge] if look.bridge else [])
    if look.bridge in state.links:
        yield from differs("the bridge's MTU", state.links[look.bridge]["mtu"], look.mtu)
    tunnels = {name for name, kind in kinds.items() if kind in ("vxlan", "tun")}
    expected = {*look.vxlan_devs.values(), *([look.udp_dev] if look.udp_dev else [])}
    yield from differs("its tunnels", tunnels, expected)
    for version, dev in look.vxlan_devs.items():
        if dev in state.links:
            yield from _vxlan_amiss(seen, node, version, state.links[dev])
    if look.udp_dev in state.links:
        yield from differs("the MTU of its TUN", state.links[look.udp_dev]["mtu"], look.udp_mtu)
    if NOBODY[4] in state.addresses(4):
        yield "has the address that is nobody's"
    for block in lease.subnets if look.blocks else ():
        net = ip_network(block)
        assert look.blocks is not None
        yield from differs(f"the length of block {net}", net.prefixlen, look.blocks[net.version])
        if not holds(state.routes[net.version], type="blackhole", dst=block, protocol="80"):
            yield f"has no blackhole {block} proto 80"
    yield from _published_amiss(seen, node)


def _vxlan_amiss(seen: Seen, node: Place, version: int, link: Entry) -> Iterator[str]:
    look, name, data = seen.look, link["ifname"], link["linkinfo"]["info_data"]
    yield from differs(f"the MTU of {name}", link["mtu"], look.vxlan_mtus[version])
    yield from differs(f"the VNI of {name}", data["id"], look.vni)
    yield from differs(f"the port of {name}", data["port"], look.port)
    yield from differs(f"learning of {name}", data["learning"], look.learning)
    yield from differs(f"GBP of {name}", "gbp" in data, look.gbp)
    yield from differs(
        f"the end of {name}", data.get("local") or data.get("local6"), node.ip(version)
    )
    if look.is_one_segment:
        yield from differs(f"the bridge of {name}", link.get("master"), look.bridge)
        return
    for subnet in seen.subnets(node, version):
        net = ip_network(subnet)
        held = {one["local"]: one["prefixlen"] for one in link["addr_info"]}
        if held.get(str(net.network_address)) != net.max_prefixlen:
            yield f"{name} has {held}, not {net.network_address}/{net.max_prefixlen}"


def _published_amiss(seen: Seen, node: Place) -> Iterator[str]:
    """Its lease, in Flannel's annotations; and that its network is there."""
    look, state, lease = seen.look, seen.states[node.name], seen.leases[node.name]
    said = lease.annotations
    yield from differs("kube-subnet-manager", said.get("kube-subnet-manager"), "true")
    yield from differs("backend-type", said.get("backend-type"), look.backend)
    for version, key, data in (
        (4, "public-ip", "backend-data"),
        (6, "public-ipv6", "backend-v6-data"),
    ):
        if any(ip_address(ip).version == version for ip in node.ips):
            yield from differs(key, said.get(key), node.ip(version))
            if version in look.vxlan_devs:
                mac = state.links[look.vxlan_devs[version]]["address"]
                wanted = f'{{"VNI":{look.vni},"VtepMAC":"{mac}"}}'
                yield from differs(data, said.get(data), wanted)
    yield from _environment_amiss(seen, node)
    conditions = {one["type"]: one["status"] for one in lease.node["status"]["conditions"]}
    yield from differs("NetworkUnavailable", conditions.get("NetworkUnavailable"), "False")


def _environment_amiss(seen: Seen, node: Place) -> Iterator[str]:
    """`subnet.env`, where each node has a subnet, as in Flannel."""
    lease = seen.leases[node.name]
    if "spec" not in lease.node or not lease.node["spec"].get("podCIDRs"):
        return
    expected = {"FLANNEL_MTU": str(seen.look.mtu), "FLANNEL_IPMASQ": "true"}
    for version, prefix in ((4, "FLANNEL"), (6, "FLANNEL_IPV6")):
        for subnet in seen.subnets(node, version):
            net = ip_network(subnet)
            expected[f"{prefix}_NETWORK"] = FLANNEL_NETWORK[version]
            # The first address that can be used.
            expected[f"{prefix}_SUBNET"] = f"{net.network_address + 1}/{net.prefixlen}"
    yield from differs("subnet.env", dict(lease.environment), expected)


def _peer_amiss(seen: Seen, node: Place, peer: Place) -> Iterator[str]:
    """What a node holds of one peer."""
    theirs = [ip_network(one) for one in seen.leases[peer.name].subnets]
    for own in map(ip_network, seen.leases[node.name].subnets):
        if any(own.overlaps(one) for one in theirs):
            yield f"{own} is leased by {peer.name} too: {theirs}"
    look, state = seen.look, seen.states[node.name]
    carrier = look.carrier(node, peer, seen.underlay)
    if look.is_one_segment:
        yield from _segment_amiss(seen, node, peer)
        return
    for version in (4, 6):
        for subnet in seen.subnets(peer, version):
            routes = [one for one in state.routes[version] if one["dst"] == subnet]
            if carrier == "direct":
                wanted: Entry = {"gateway": peer.ip(version), "dev": "eth0"}
                flags = ["onlink"] if look.onlink else []
            elif carrier == "vxlan":
                vtep = str(ip_network(subnet).network_address)
                dev = look.vxlan_devs[version]
                wanted, flags = {"gateway": vtep, "dev": dev}, ["onlink"]
                mac = seen.states[peer.name].links[dev]["address"]
                if not holds(state.neighbors, dst=vtep, dev=dev, lladdr=mac, state=["PERMANENT"]):
                    yield f"has no neighbour {vtep} lladdr {mac} PERMANENT on {dev}"
                end = {"mac": mac, "dst": peer.ip(version), "ifname": dev, "state": "permanent"}
                if not holds(state.fdb, **end):
                    yield f"has no FDB entry {mac} dst {peer.ip(version)} on {dev}"
            else:
                # Flannel's: one route for the whole network, and the daemon knows the rest.
                yield from differs(f"its routes to {subnet}", routes, [])
                covering = [one for one in state.routes[version] if one.get("dev") == look.udp_dev]
                base = ip_network(subnet).network_address
                if not any(base in ip_network(one["dst"]) for one in covering):
                    yield f"has no route to {subnet} by {look.udp_dev}, but {covering}"
                continue
            if not holds(routes, **wanted, flags=flags, protocol=look.protocol):
                yield f"{subnet} is not routed {wanted} {flags}, but {routes}"


def _segment_amiss(seen: Seen, node: Place, peer: Place) -> Iterator[str]:
    """Flooding goes to each peer; the MACs of its pods are known, and ARP for them is answered."""
    look, fdb, neighbors = seen.look, seen.states[node.name].fdb, seen.states[node.name].neighbors
    ((version, dev),) = look.vxlan_devs.items()
    end = peer.ip(version)
    pods = [pod for pod in seen.pods if pod.node == peer.name]
    macs = [seen.states[pod.name].links["eth0"]["address"] for pod in pods]
    for mac in (_EVERYBODY, *macs):
        if not holds(fdb, mac=mac, ifname=dev, dst=end, state="permanent"):
            yield f"has no FDB entry {mac} dst {end} on {dev}"
    for pod, mac in zip(pods, macs, strict=True):
        for ip in pod.ips:
            known = {"dst": ip, "dev": look.bridge, "lladdr": mac, "state": ["PERMANENT"]}
            if not holds(neighbors, **known):
                yield f"does not answer for {pod.name}: no neighbour {known}"
