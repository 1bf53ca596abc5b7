"""A place to ask from: its kernel, what is wanted in it, and the names of its interfaces.

What lives here: asking about links and addresses of one place, comparing a table's entry with what
is wanted, saying what is wrong with it. What does not: what follows for a packet (`routing`,
`switching`, `tunneling`).
"""

from __future__ import annotations

from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe import lookup
from podwire.kernel.observe.interfaces import InterfaceState, find_interface, read_interfaces
from podwire.kernel.observe.lookup_messages import (
    RTN_BLACKHOLE,
    RTN_LOCAL,
    RTN_UNICAST,
    FibEntry,
    RouteQuestion,
)
from podwire.model.state import Address, Blackhole, IPAddress, Neighbor, Route, Why
from podwire.trace.decisions.mend import Remedies
from podwire.trace.intent import Intent
from podwire.trace.model import Cause, Place, Problem


class Vantage:
    """One place. Its links are asked for anew each time; only their names are remembered."""

    def __init__(
        self,
        place: Place,
        sock: NetlinkSocket,
        intent: Intent,
        remedies: Remedies,
        node: Vantage | None = None,
    ) -> None:
        """`intent` is what is wanted in this place, `node` the node's own place for a pod's."""
        self.place = place
        self.sock = sock
        self.intent = intent
        self.remedies = remedies
        self.node = node
        self._names = {one.index: one.name for one in place.interfaces}
        self._local = {text.partition("/")[0] for one in place.interfaces for text in one.addresses}

    @property
    def name(self) -> str:
        """How a person calls it: `node1`, `pod default/pod1`."""
        return f"pod {self.place.pod}" if self.place.pod else self.place.node

    @property
    def where(self) -> str:
        """The same with its preposition: `on node1`, `in pod default/pod1`."""
        return f"{'in' if self.is_pod else 'on'} {self.name}"

    @property
    def is_pod(self) -> bool:
        return bool(self.place.pod)

    def interface(self, which: int | str) -> InterfaceState | None:
        """An interface as it is now, by index or name."""
        return find_interface(self.sock, which)

    def interfaces(self) -> list[InterfaceState]:
        """All of them now, with addresses; on a node with many pods that takes milliseconds."""
        return read_interfaces(self.sock)

    def dev(self, ifindex: int) -> str:
        """The name of an interface, `if17` where it is gone."""
        if ifindex not in self._names and (found := self.interface(ifindex)) is not None:
            self._names[ifindex] = found.name
        return self._names.get(ifindex, f"if{ifindex}")

    def had(self, ip: IPAddress) -> bool:
        """Whether the place had this address when it was described."""
        return str(ip) in self._local

    def has(self, ip: IPAddress) -> bool:
        """Whether it has this address now."""
        return lookup.route(self.sock, RouteQuestion(dst=ip.packed)).kind == RTN_LOCAL

    def follows(self, entry: FibEntry, wanted: Route | Address | Blackhole) -> bool:
        """Whether a table's entry takes a packet where it is wanted."""
        if isinstance(wanted, Blackhole):
            return entry.kind == RTN_BLACKHOLE
        if entry.kind != RTN_UNICAST:
            return False
        via = wanted.via.packed if isinstance(wanted, Route) and wanted.via is not None else b""
        hops = entry.hops or ((entry.ifindex, entry.via),)
        return any(self.dev(index) == wanted.dev and by == via for index, by in hops)

    def why_of(self, entry: FibEntry) -> Why | None:
        """The planner's reason for a table's entry; None where it is not Podwire's doing."""
        if entry.kind in (RTN_UNICAST, RTN_BLACKHOLE):
            wanted = self.intent.prefix(entry.dst)
            return wanted.why if wanted is not None and self.follows(entry, wanted) else None
        own = self.intent.address(entry.dst.network_address)
        return own.why if own is not None else None

    def why_of_link(self, name: str) -> Why | None:
        link = self.intent.link(name)
        return link.why if link is not None else None

    def sent_by(self, dst: IPAddress) -> FibEntry | None:
        """The entry that a packet from here takes, whatever its source."""
        return lookup.fib_entry(self.sock, RouteQuestion(dst=dst.packed))

    def tunnel_neighbor(self, dst: IPAddress) -> Neighbor | None:
        """The wanted entry for the next hop of `dst`, where that is in a tunnel."""
        way = self.intent.way(dst)
        if not isinstance(way, Route):
            return None
        return self.intent.neighbor(way.dev, way.via if way.via is not None else dst)

    def problem(
        self,
        cause: Cause,
        text: str,
        *,
        interface: str = "",
        line: str = "",
        remedy: str = "",
        why: Why | None = None,
    ) -> Problem:
        """A problem in this place. `line` is the command that mends it, which a node's agent would
        run by itself; `remedy` what to do where there is none."""
        if line:
            remedy = self.remedies.by_hand(line, self.where)
            if not self.is_pod:
                remedy = self.remedies.here(line)
        return Problem(
            cause=cause,
            text=text,
            place=self.place.name,
            interface=interface,
            remedy=remedy,
            why=why,
        )
