"""What explanations are made from: a node's kernel, what is wanted of it, the cluster's nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_network

import msgspec

from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe.entries import routes_of
from podwire.model.cluster import Node, leaseholder
from podwire.model.state import IPAddress, IPNetwork, Why
from podwire.trace import iproute
from podwire.trace.decisions.mend import Remedies
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.intent import Intent
from podwire.trace.model import Place

Details = list[tuple[str, str]]


class Explanation(msgspec.Struct, kw_only=True):
    """An answer in the making; see `wire.Explained`. Labels of details are one word each:

    `entry` is what the kernel has, `wrong` how that differs from what is wanted, `mend` the line
    that mends it, `show` a command that shows the entry; others say what they are.
    """

    text: str
    found: bool = True
    why: Why | None = None
    without: str = ""
    details: Details = []


class Knowledge(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's agent knows. `nodes` are all of the cluster, by name; `sock` is a socket in the
    node's namespace, and the thread that asks is in it too."""

    node: str
    intent: Intent
    nodes: Mapping[str, Node]
    sock: NetlinkSocket
    held: bool = False

    @property
    def remedies(self) -> Remedies:
        return Remedies(self.node, held=self.held)

    def vantage(self) -> Vantage:
        """The node's own place."""
        return Vantage(Place(node=self.node), self.sock, self.intent, self.remedies)

    def leaseholder(self, ip: IPAddress) -> tuple[Node, IPNetwork] | None:
        """The node that leases a subnet with `ip`, and that subnet."""
        return leaseholder(self.nodes.values(), ip)

    def assigned(self, ip: IPAddress) -> tuple[Node, IPNetwork] | None:
        """The node that the cluster has given a CIDR with `ip`, leased or not."""
        for node in self.nodes.values():
            for cidr in node.pod_cidrs:
                if ip in cidr:
                    return node, cidr
        return None

    def node_at(self, ip: IPAddress) -> Node | None:
        """The node that has `ip` as an address of its own, by what it says of itself."""
        for node in self.nodes.values():
            if ip in node.internal_ips or ip in endpoints(node):
                return node
        return None

    def behind(self, ips: Iterable[IPAddress]) -> str:
        """`node2's pods (10.244.2.0/24)`: what is reached through VTEPs at these addresses."""
        wanted = set(ips)
        found = [
            f"{name}'s pods ({', '.join(map(str, node.lease.subnets))})"
            for name, node in sorted(self.nodes.items())
            if node.lease is not None and wanted & endpoints(node) and name != self.node
        ]
        more = len(found) - _NAMED
        return ", ".join(found[:_NAMED]) + (f" and those of {more} more nodes" if more > 0 else "")

    def otherwise(self, version: int) -> str:
        """Where a packet goes that no other route is for, as the end of a sentence."""
        anywhere = ip_network("0.0.0.0/0" if version == 4 else "::/0")
        default = next(iter(routes_of(self.sock, anywhere)), None)
        if default is None or not default.ifindex:
            return "be refused, since there is no default route"
        way = iproute.way_text(self.vantage().dev(default.ifindex), default.via)
        return f"leave by the default route ({way}), where nobody knows pods"


#: So many nodes are named in a sentence.
_NAMED = 3


def endpoints(node: Node) -> set[IPAddress]:
    """Where a node is reached on the underlay, by its lease."""
    return {one.ip for one in node.lease.endpoints} if node.lease is not None else set()


def node_name(why: Why) -> str:
    """`node2` of `Node/node2`; the object as it is for others."""
    return why.object.removeprefix("Node/")
