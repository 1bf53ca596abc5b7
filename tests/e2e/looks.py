"""What a user of each system finds on its nodes and in its pods: how each fabric looks.

A `Look` is what is expected of one fabric over one underlay. `amiss` compares the state of a lab
with it, and `tests.e2e.ways` its packets; both give one sentence for each thing that is not so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from .places import Entry, Place, State

#: The gateway of routed pods, which no interface has, and the MAC that answers for it.
NOBODY = {4: "169.254.1.1", 6: "fe80::ecee:eeff:feee:eeee"}
NOBODYS_MAC = "ee:ee:ee:ee:ee:ee"
#: Flooded frames (bridge(8)).
_EVERYBODY = "00:00:00:00:00:00"


@dataclass(frozen=True)
class Look:
    """One fabric over one underlay. All MTUs are those of its devices in bytes.

    `near` is how packets travel to a node on the same link, `far` to one behind a router: "direct",
    "vxlan" or "udp". `bridge` is None where pods are routed, `port_prefix` begins the names of
    their host ends. `vxlan_devs` and `vxlan_mtus` are by IP version of the underlay; `protocol` is
    what ip(8) says of routes to peers, and `onlink` whether it says so of plain ones.
    """

    near: str
    far: str
    mtu: int
    bridge: str | None
    port_prefix: str
    vxlan_devs: Mapping[int, str] = field(default_factory=dict)
    vxlan_mtus: Mapping[int, int] = field(default_factory=dict)
    vni: int = 1
    port: int = 8472
    udp_dev: str | None = None
    udp_mtu: int = 0
    is_one_segment: bool = False
    prefix_len: Mapping[int, int] = field(default_factory=lambda: {4: 24, 6: 64})
    blocks: Mapping[int, int] | None = None
    protocol: str = "112"
    onlink: bool = False
    backend: str = "vxlan"

    @property
    def routed(self) -> bool:
        return self.bridge is None

    def carrier(self, one: Place, other: Place, underlay: str) -> str:
        """How packets travel between two nodes; those of even numbers are behind the router."""
        behind = {int(place.node.removeprefix("node")) % 2 for place in (one, other)}
        return self.far if underlay == "routed" and len(behind) == 2 else self.near

    def ttl(self, carrier: str) -> int:
        """Of a packet between pods of two nodes: 64, less what each that routes it takes off."""
        if self.is_one_segment:
            return 64
        # Both ends of the UDP tunnel take one off too, as Flannel's do.
        return 60 if carrier == "udp" else 62

    @property
    def ttl_on_node(self) -> int:
        """Of a packet between pods of one node."""
        return 63 if self.routed else 64


@dataclass(frozen=True)
class Lease:
    """What a node has published: its subnets, blocks or ranges, and its Node object."""

    subnets: tuple[str, ...]
    node: Mapping[str, Any]

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Lease:
        annotations = node["metadata"].get("annotations", {})
        text = annotations.get("podwire.io/subnets") or annotations.get("podwire.io/ranges")
        return cls(tuple(text.split(",") if text else node["spec"]["podCIDRs"]), node)

    @property
    def annotations(self) -> Mapping[str, str]:
        prefix = "flannel.alpha.coreos.com/"
        found = self.node["metadata"]["annotations"].items()
        return {key.removeprefix(prefix): text for key, text in found if key.startswith(prefix)}


@dataclass(frozen=True)
class Seen:
    """All of a lab, read once."""

    look: Look
    underlay: str
    places: Sequence[Place]
    states: Mapping[str, State]
    leases: Mapping[str, Lease]

    @property
    def nodes(self) -> list[Place]:
        return [place for place in self.places if place.is_node]

    @property
    def pods(self) -> list[Place]:
        return [place for place in self.places if not place.is_node]

    def subnets(self, node: Place, version: int) -> list[str]:
        subnets = self.leases[node.name].subnets
        return [one for one in subnets if ip_network(one).version == version]


def amiss(seen: Seen) -> list[str]:
    """What of a fabric's look is not found, one sentence each."""
    found = []
    for pod in seen.pods:
        found += [f"pod {pod.name}: {text}" for text in _pod_amiss(seen, pod)]
    for node in seen.nodes:
        found += [f"{node.name}: {text}" for text in _node_amiss(seen, node)]
        for peer in seen.nodes:
            if peer != node:
                found += [f"{node.name}: {text}" for text in _peer_amiss(seen, node, peer)]
    ips = [ip for place in seen.pods for ip in place.ips]
    if len(set(ips)) < len(ips):
        found.append(f"two pods have one address: {ips}")
    return found


def _differs(what: str, found: object, expected: object) -> Iterator[str]:
    if found != expected:
        yield f"{what} is {found!r}, not {expected!r}"


def holds(entries: Sequence[Entry], **expected: object) -> bool:
    """Whether there is an entry with all these fields."""
    return any(all(one.get(key) == value for key, value in expected.items()) for one in entries)


def _pod_amiss(seen: Seen, pod: Place) -> Iterator[str]:
    look, state, node = seen.look, seen.states[pod.name], seen.states[pod.node]
    eth0 = state.links["eth0"]
    yield from _differs("the MTU of eth0", eth0["mtu"], look.mtu)
    for ip in pod.ips:
        version = ip_address(ip).version
        held = state.addresses(version)
        yield from _differs("its addresses", held, {ip: look.prefix_len[version]})
        defaults = [one for one in state.routes[version] if one["dst"] == "default"]
        gateways = [one.get("gateway") for one in defaults]
        if look.routed:
            yield from _differs("its gateway", gateways, [NOBODY[version]])
            # It has talked to everybody by now, and its gateway's MAC is what it has learnt.
            yield from _differs("its gateway's MAC", state.lladdr(NOBODY[version]), NOBODYS_MAC)
        else:
            assert look.bridge is not None
            own = set(node.addresses(version)) & {
                one["local"] for one in node.links[look.bridge]["addr_info"]
            }
            if not set(gateways) <= own or len(gateways) != 1:
                yield f"its gateways are {gateways}, and its node's bridge has {own}"
            elif not look.is_one_segment or state.lladdr(gateways[0]):
                mac = node.links[look.bridge]["address"]
                yield from _differs("its gateway's MAC", state.lladdr(gateways[0]), mac)
        if look.is_one_segment:
            for other in seen.pods:
                if other != pod:
                    mac = seen.states[other.name].links["eth0"]["address"]
                    known = state.lladdr(other.ip(version))
                    yield from _differs(f"the MAC of {other.name}", known, mac)
    if look.routed and 4 in {ip_address(ip).version for ip in pod.ips}:
        wanted = {"dst": NOBODY[4], "dev": "eth0", "scope": "link"}
        if not holds(state.routes[4], **wanted):
            yield f"has no 169.254.1.1 dev eth0 scope link, but {state.routes[4]}"
    port = next((one for one in node.links.values() if one["ifindex"] == eth0["link_index"]), None)
    if port is None or not port["ifname"].startswith(look.port_prefix):
        yield f"its other end is not a {look.port_prefix}…, but {port}"
    elif look.routed:
        yield from _differs(f"the MAC of {port['ifname']}", port["address"], NOBODYS_MAC)
        for ip in pod.ips:
            routes = node.routes[ip_address(ip).version]
            if not holds(routes, dst=ip, dev=port["ifname"]):
                yield f"its node has no {ip} dev {port['ifname']}"
    else:
        yield from _differs(f"the bridge of {port['ifname']}", port.get("master"), look.bridge)


def _node_amiss(seen: Seen, node: Place) -> Iterator[str]:
    look, state, lease = seen.look, seen.states[node.name], seen.leases[node.name]
    kinds = {name: one.get("linkinfo", {}).get("info_kind") for name, one in state.links.items()}
    bridges = [name for name, kind in kinds.items() if kind == "bridge"]
    yield from _differs("its bridges", bridges, [look.bridge] if look.bridge else [])
    if look.bridge in state.links:
        yield from _differs("the bridge's MTU", state.links[look.bridge]["mtu"], look.mtu)
    tunnels = {name for name, kind in kinds.items() if kind in ("vxlan", "tun")}
    expected = {*look.vxlan_devs.values(), *([look.udp_dev] if look.udp_dev else [])}
    yield from _differs("its tunnels", tunnels, expected)
    for version, dev in look.vxlan_devs.items():
        if dev in state.links:
            yield from _vxlan_amiss(seen, node, version, state.links[dev])
    if look.udp_dev in state.links:
        yield from _differs("the MTU of its TUN", state.links[look.udp_dev]["mtu"], look.udp_mtu)
    if set(NOBODY.values()) & {*state.addresses(4), *state.addresses(6)} - {NOBODY[6]}:
        yield "has the address that is nobody's"
    for block in lease.subnets if look.blocks else ():
        net = ip_network(block)
        assert look.blocks is not None
        yield from _differs(f"the length of block {net}", net.prefixlen, look.blocks[net.version])
        if not holds(state.routes[net.version], type="blackhole", dst=block, protocol="80"):
            yield f"has no blackhole {block} proto 80"
    for pod in seen.pods:
        if pod.node == node.name:
            for ip in pod.ips:
                if not any(ip_address(ip) in ip_network(one) for one in lease.subnets):
                    yield f"pod {pod.name} has {ip}, outside of its lease {lease.subnets}"
    yield from _published_amiss(seen, node)


def _vxlan_amiss(seen: Seen, node: Place, version: int, link: Entry) -> Iterator[str]:
    look, name, data = seen.look, link["ifname"], link["linkinfo"]["info_data"]
    yield from _differs(f"the MTU of {name}", link["mtu"], look.vxlan_mtus[version])
    yield from _differs(f"the VNI of {name}", data["id"], look.vni)
    yield from _differs(f"the port of {name}", data["port"], look.port)
    yield from _differs(f"learning of {name}", data["learning"], look.is_one_segment)
    yield from _differs(
        f"the end of {name}", data.get("local") or data.get("local6"), node.ip(version)
    )
    if look.is_one_segment:
        yield from _differs(f"the bridge of {name}", link.get("master"), look.bridge)
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
    yield from _differs("kube-subnet-manager", said.get("kube-subnet-manager"), "true")
    yield from _differs("backend-type", said.get("backend-type"), look.backend)
    for version, key, data in (
        (4, "public-ip", "backend-data"),
        (6, "public-ipv6", "backend-v6-data"),
    ):
        if any(ip_address(ip).version == version for ip in node.ips):
            yield from _differs(key, said.get(key), node.ip(version))
            if version in look.vxlan_devs:
                mac = state.links[look.vxlan_devs[version]]["address"]
                wanted = f'{{"VNI":{look.vni},"VtepMAC":"{mac}"}}'
                yield from _differs(data, said.get(data), wanted)
    conditions = {one["type"]: one["status"] for one in lease.node["status"]["conditions"]}
    yield from _differs("NetworkUnavailable", conditions.get("NetworkUnavailable"), "False")


def _peer_amiss(seen: Seen, node: Place, peer: Place) -> Iterator[str]:
    """What a node holds of one peer."""
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
                yield from _differs(f"its routes to {subnet}", routes, [])
                covering = [one for one in state.routes[version] if one.get("dev") == look.udp_dev]
                base = ip_network(subnet).network_address
                if not any(base in ip_network(one["dst"]) for one in covering):
                    yield f"has no route to {subnet} by {look.udp_dev}, but {covering}"
                continue
            if not holds(routes, **wanted, flags=flags, protocol=look.protocol):
                yield f"{subnet} is not routed {wanted} {flags}, but {routes}"


def _segment_amiss(seen: Seen, node: Place, peer: Place) -> Iterator[str]:
    """Flooding goes to each peer, and the MACs of its pods are known."""
    look, fdb = seen.look, seen.states[node.name].fdb
    ((version, dev),) = look.vxlan_devs.items()
    end = peer.ip(version)
    pods = [pod for pod in seen.pods if pod.node == peer.name]
    macs = [seen.states[pod.name].links["eth0"]["address"] for pod in pods]
    for mac in (_EVERYBODY, *macs):
        if not holds(fdb, mac=mac, ifname=dev, dst=end, state="permanent"):
            yield f"has no FDB entry {mac} dst {end} on {dev}"
