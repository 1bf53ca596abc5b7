"""What Podwire wants of a node's kernel, found by what a packet or a person asks about.

What lives here: an index over the desired entries and the pods' attachments. What does not: the
kernel, and what follows from a difference between the two. Pure: values in, entries out.

An `Intent` is of one namespace: `of_pod` gives that of a pod here. It is made anew whenever
somebody asks, so making it is cheap (some 30 ms for the 30,000 entries of 10,000 peers), and a
look-up costs no more with many entries than with few. Where two causes want the same thing, it
answers as the reconciler decides: the first by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from podwire.kernel import nft
from podwire.model.cluster import Attachment, NetworkConfig, Node, leaseholder
from podwire.model.state import (
    Address,
    Blackhole,
    Entry,
    FdbEntry,
    IPAddress,
    IPNetwork,
    Link,
    Neighbor,
    NftRule,
    NftTable,
    PortFdbEntry,
    PortGuard,
    Route,
    Sysctl,
    Veth,
    Vxlan,
)
from podwire.plan.paths import Path, over, paths
from podwire.plan.wiring import plan_attachment
from podwire.trace.user_tunnel import UserTunnel

#: Entries by (IP version, prefix length), then by the network as a number.
_Prefixes = dict[tuple[int, int], dict[int, Route | Address | Blackhole]]


class Intent:
    """The desired entries of one namespace. `config` is None until the agent has a lease.

    `nodes` are the cluster's by name, `blocked` those that VXLAN is seen not to reach, `tunnel` is
    None where the fabric has no UDP tunnel.
    """

    def __init__(
        self,
        by_cause: Mapping[str, tuple[Entry, ...]],
        *,
        config: NetworkConfig | None = None,
        attachments: Iterable[Attachment] = (),
        nodes: Mapping[str, Node] | None = None,
        blocked: frozenset[str] = frozenset(),
        tunnel: UserTunnel | None = None,
    ) -> None:
        self.config = config
        self.tunnel = tunnel
        self._nodes = nodes or {}
        self._blocked = blocked
        self._prefixes: _Prefixes = {}
        self._addresses: dict[bytes, Address] = {}
        self._neighbors: dict[tuple[str, bytes], Neighbor] = {}
        self._fdb: dict[tuple[str, bytes], FdbEntry] = {}
        self._port_fdb: dict[tuple[str, bytes], PortFdbEntry] = {}
        self._links: dict[str, Link] = {}
        self._guards: dict[str, PortGuard] = {}
        self._sysctls: dict[str, Sysctl] = {}
        self._tables: dict[tuple[str, str], NftTable] = {}
        for cause in sorted(by_cause):
            self._add(by_cause[cause])
        #: Longest prefix first, which is the order in which a route is looked for.
        self._lengths = sorted(self._prefixes, key=lambda key: -key[1])
        self._attachments: dict[bytes, Attachment] = {}
        self._by_pod: dict[str, Attachment] = {}
        self._by_port: dict[str, Attachment] = {}
        for one in attachments:
            self._by_port[one.host_ifname] = one
            self._by_pod.setdefault(one.pod, one)
            for ip in one.ips:
                self._attachments[ip.ip.packed] = one

    def _add(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            match entry:
                case Route(dst=dst) | Blackhole(dst=dst):
                    self._add_prefix(dst, entry)
                case Neighbor(dev=dev, ip=ip):
                    self._neighbors.setdefault((dev, ip.packed), entry)
                case FdbEntry(dev=dev, mac=mac):
                    self._fdb.setdefault((dev, mac), entry)
                case PortFdbEntry(dev=dev, mac=mac):
                    self._port_fdb.setdefault((dev, mac), entry)
                case PortGuard(dev=dev):
                    self._guards.setdefault(dev, entry)
                case Link(name=name):
                    self._links.setdefault(name, entry)
                case Address(ip=interface):
                    self._addresses.setdefault(interface.ip.packed, entry)
                    self._add_prefix(interface.network, entry)
                case Sysctl(key=key):
                    self._sysctls.setdefault(key, entry)
                case NftTable(name=name, family=family):
                    self._tables.setdefault((family, name), entry)

    def _add_prefix(self, network: IPNetwork, entry: Route | Address | Blackhole) -> None:
        length = (network.version, network.prefixlen)
        self._prefixes.setdefault(length, {}).setdefault(int(network.network_address), entry)

    # --- the way of a packet --------------------------------------------------------------

    def way(self, ip: IPAddress) -> Route | Address | None:
        """The longest prefix with `ip` in it: a route, or the address whose subnet is on its link.

        None for what Podwire does not care about, as all that is outside of the pod network, and
        for what it wants to be refused (`blackhole`).
        """
        found = self._longest(ip)
        return found if not isinstance(found, Blackhole) else None

    def blackhole(self, ip: IPAddress) -> Blackhole | None:
        """The entry that `ip` is to run into: nobody here has it, and it is this node's to give."""
        found = self._longest(ip)
        return found if isinstance(found, Blackhole) else None

    def _longest(self, ip: IPAddress) -> Route | Address | Blackhole | None:
        number, bits, version = int(ip), ip.max_prefixlen, ip.version
        for length in self._lengths:
            if length[0] != version:
                continue
            host = bits - length[1]
            if (found := self._prefixes[length].get(number >> host << host)) is not None:
                return found
        return None

    def route(self, ip: IPAddress) -> Route | None:
        """The route that packets to `ip` are to take."""
        way = self.way(ip)
        return way if isinstance(way, Route) else None

    def prefix(self, network: IPNetwork) -> Route | Address | Blackhole | None:
        """The entry for exactly this prefix."""
        same = self._prefixes.get((network.version, network.prefixlen), {})
        return same.get(int(network.network_address))

    def address(self, ip: IPAddress) -> Address | None:
        """The entry that gives this namespace `ip` as its own."""
        return self._addresses.get(ip.packed)

    def neighbor(self, dev: str, ip: IPAddress) -> Neighbor | None:
        return self._neighbors.get((dev, ip.packed))

    def fdb(self, dev: str, mac: bytes) -> FdbEntry | None:
        return self._fdb.get((dev, mac))

    def port_fdb(self, dev: str, mac: bytes) -> PortFdbEntry | None:
        """The entry of a bridge that has a remote pod's MAC at one of its ports."""
        return self._port_fdb.get((dev, mac))

    def guard(self, dev: str) -> PortGuard | None:
        """The program that is to be at a pod's port."""
        return self._guards.get(dev)

    def link(self, name: str) -> Link | None:
        return self._links.get(name)

    def sysctl(self, key: str) -> Sysctl | None:
        """By its path below /proc/sys (`net/ipv4/ip_forward`)."""
        return self._sysctls.get(key)

    def nft_rule(
        self, table: str, chain: str, text: str, family: str = nft.FAMILY
    ) -> NftRule | None:
        """By the text that it was written with, or the one that the kernel gives for it.

        The latter may be spelled otherwise, and ends in the comment that it was made with.
        """
        rules = self.nft_rules(table, chain, family)
        if not rules:
            return None
        _, digests = nft.wanted_state(self._tables[family, table]).chains[chain]
        for rule, digest in zip(rules, digests, strict=True):
            if text == rule.text or text.endswith(f'comment "{digest}"'):
                return rule
        return None

    # --- all of a kind --------------------------------------------------------------------

    def nft_rules(self, table: str, chain: str, family: str = nft.FAMILY) -> tuple[NftRule, ...]:
        """The rules of a chain, in order."""
        found = self._tables.get((family, table))
        chains = found.chains if found is not None else ()
        return next((one.rules for one in chains if one.name == chain), ())

    def nft_table(self, name: str, family: str = nft.FAMILY) -> NftTable | None:
        return self._tables.get((family, name))

    def nft_tables(self) -> list[NftTable]:
        """All of them."""
        return list(self._tables.values())

    def tunnels(self) -> list[Link]:
        """The VXLAN devices."""
        return [link for link in self._links.values() if isinstance(link.kind, Vxlan)]

    def addresses_of(self, dev: str) -> list[Address]:
        """The addresses of a link."""
        return [one for one in self._addresses.values() if one.dev == dev]

    def neighbors_with(self, mac: bytes) -> list[Neighbor]:
        """The neighbours that have this MAC. Looks at all."""
        return [one for one in self._neighbors.values() if one.mac == mac]

    def fdb_to(self, dst: IPAddress) -> list[FdbEntry]:
        """The FDB entries that lead to this VTEP. Looks at all."""
        return [one for one in self._fdb.values() if one.dst == dst]

    # --- peers ----------------------------------------------------------------------------

    def leaseholder(self, ip: IPAddress) -> tuple[Node, IPNetwork] | None:
        """The node that leases a subnet with `ip`, and that subnet."""
        return leaseholder(self._nodes.values(), ip)

    def node_at(self, ip: IPAddress) -> Node | None:
        """The node that has `ip` as an address of its own, by what it says of itself."""
        for node in self._nodes.values():
            endpoints = node.lease.endpoints if node.lease is not None else ()
            if ip in node.internal_ips or any(one.ip == ip for one in endpoints):
                return node
        return None

    def path(self, ip: IPAddress) -> tuple[Node, Path] | None:
        """The peer that has `ip`, and the way to it; None where that goes without saying: there is
        one kind of way, and its outer packets are of the same IP version."""
        config, found = self.config, self.leaseholder(ip)
        if config is None or found is None or found[0].name == config.node:
            return None
        node = found[0]
        ways = paths(config, node, blocked=node.name in self._blocked)
        way = next((one for one in ways if one.version == ip.version), None)
        if way is None:
            return None
        chosen = config.fabric.transport == "auto" or config.fabric.cross_subnet
        return (node, way) if chosen or over(way.version, way.via) else None

    # --- pods -----------------------------------------------------------------------------

    def pod_at(self, ip: IPAddress) -> Attachment | None:
        """The pod of this node that has `ip`."""
        return self._attachments.get(ip.packed)

    def pod_at_port(self, host_ifname: str) -> Attachment | None:
        """The pod whose cable ends at this link of the node."""
        return self._by_port.get(host_ifname)

    def pod(self, name: str) -> Attachment | None:
        """The pod of this node by its `namespace/name`."""
        return self._by_pod.get(name)

    def of_pod(self, name: str) -> Intent:
        """What is wanted inside of a pod: its link, addresses and routes; nothing where the pod is
        unknown."""
        one = self._by_pod.get(name)
        if one is None or self.config is None:
            return Intent({})
        plan = plan_attachment(self.config, one)
        inside = Link(
            name=one.ifname,
            kind=Veth(peer=one.host_ifname, peer_mac=b""),
            mtu=plan.port.mtu,
            mac=one.mac,
            why=plan.port.why,
        )
        return Intent({plan.port.why.object: (inside, *plan.pod)}, config=self.config)
