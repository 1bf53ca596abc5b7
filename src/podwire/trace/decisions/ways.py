"""Routes that are not as wanted: none, another one, one that refuses.

What lives here: the table's entry for a packet against the desired one. What does not: what else
may stop a packet that has a route.
"""

from __future__ import annotations

import errno
import os
from ipaddress import ip_interface
from shlex import quote

from podwire.kernel.observe import lookup
from podwire.kernel.observe.lookup_messages import (
    REFUSING,
    FibEntry,
    RouteQuestion,
)
from podwire.model.state import Address, IPAddress, IPNetwork, Route
from podwire.trace import iproute
from podwire.trace.decisions import mend
from podwire.trace.decisions.devices import device_problem
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.model import Cause, Problem

_MAIN = 254


def way_problem(
    v: Vantage, dst: IPAddress, wanted: Route | Address, entry: FibEntry | None
) -> Problem:
    """What is wrong with a table whose entry for `dst` (None: it has none) is not the wanted one.

    A link that is down takes its routes along, so that is looked at first.
    """
    if (device := device_problem(v, wanted.dev)) is not None:
        return device
    network = wanted.dst if isinstance(wanted, Route) else wanted.ip.network
    refusing = lookup.refusing_entry(v.sock, dst.packed) if entry is None else None
    actual = entry or refusing
    if (
        actual is None
        # One that we want ourselves is no fault: the more specific one is.
        or v.why_of(actual) is not None
        or (actual.dst.prefixlen < network.prefixlen and actual.table == _MAIN and refusing is None)
    ):
        return _no_route(v, dst, wanted, network, actual)
    taken = iproute.route_text(actual, v.dev)
    if actual.kind in REFUSING:
        return v.problem(
            Cause.BLACKHOLE,
            f"the route `{taken}` refuses it",
            interface=wanted.dev,
            remedy=_removal(v, actual),
            why=wanted.why,
        )
    text = f"{dst} takes `{taken}`, and not {_words(wanted)}"
    same = actual.dst == network and actual.table == _MAIN and isinstance(wanted, Route)
    return v.problem(
        Cause.WRONG_ROUTE,
        text,
        interface=wanted.dev,
        line=mend.entry_line(wanted, replace=True) if same else "",
        remedy=_removal(v, actual),
        why=wanted.why,
    )


def _no_route(
    v: Vantage, dst: IPAddress, wanted: Route | Address, network: IPNetwork, entry: FibEntry | None
) -> Problem:
    missing = f"route to {network}" if network.prefixlen else "default route"
    text = f"{v.name} has no {missing}"
    if entry is not None:
        text += f": {dst} takes `{iproute.route_text(entry, v.dev)}`"
    line = "; ".join(map(mend.entry_line, [*_before(v, wanted), wanted]))
    if isinstance(wanted, Address) and v.has(wanted.ip.ip):
        # The address is there and would not bring its subnet's route again.
        line = f"ip route add {network} dev {wanted.dev} proto kernel scope link"
        line += f" src {wanted.ip.ip}" if network.version == 4 else ""
    return v.problem(Cause.NO_ROUTE, text, interface=wanted.dev, line=line, why=wanted.why)


def _before(v: Vantage, wanted: Route | Address) -> list[Route]:
    """The route to the next hop itself, where that is missing, too: a link that was down has lost
    all of its routes."""
    if not isinstance(wanted, Route) or wanted.via is None or wanted.onlink:
        return []
    first = v.intent.way(wanted.via)
    if not isinstance(first, Route) or first is wanted:
        return []
    entry = v.sent_by(wanted.via)
    return [] if entry is not None and v.follows(entry, first) else [first]


def _words(wanted: Route | Address) -> str:
    via = wanted.via.packed if isinstance(wanted, Route) and wanted.via is not None else b""
    return iproute.way_text(wanted.dev, via)


def _removal(v: Vantage, entry: FibEntry) -> str:
    """The agent does not touch what it has not made."""
    line = mend.removal_line(entry, v.dev(entry.ifindex))
    return v.remedies.by_hand(line, f"{v.where}; {iproute.maker(entry.protocol)} made it")


def no_way(v: Vantage, dst: IPAddress) -> Problem:
    """There is no entry for `dst`, and Podwire wants none."""
    refusing = lookup.refusing_entry(v.sock, dst.packed)
    if refusing is not None:
        taken = iproute.route_text(refusing, v.dev)
        return v.problem(
            Cause.BLACKHOLE, f"the route `{taken}` refuses it", remedy=_removal(v, refusing)
        )
    code = lookup.route(v.sock, RouteQuestion(dst=dst.packed)).errno
    if code in (errno.EACCES, errno.EINVAL, errno.EHOSTUNREACH):
        return v.problem(
            Cause.BLACKHOLE,
            f"a policy rule of {v.name} refuses {dst} ({os.strerror(code)})",
            remedy=v.remedies.by_hand(f"ip {'-6 ' * (dst.version == 6)}rule", v.where),
        )
    if (unleased := unleased_problem(v, dst, None)) is not None:
        return unleased
    for interface in v.place.interfaces:
        for own in map(ip_interface, interface.addresses):
            if dst in own.network:
                line = f"ip route add {own.network} dev {quote(interface.name)} src {own.ip}"
                return v.problem(
                    Cause.NO_ROUTE,
                    f"{v.name} has no route to {dst}: that which came with its address {own} is"
                    " gone",
                    interface=interface.name,
                    remedy=v.remedies.by_hand(line, v.where),
                )
    return v.problem(
        Cause.NO_ROUTE,
        f"{v.name} has no route to {dst}, and no default route",
        remedy=v.remedies.by_hand("ip route add default via GATEWAY", v.where),
    )


def unleased_problem(v: Vantage, dst: IPAddress, entry: FibEntry | None) -> Problem | None:
    """`dst` is in the pod network, and in no lease that this node uses."""
    config = v.intent.config
    if v.is_pod or config is None or v.intent.way(dst) is not None:
        return None
    if (own := v.intent.blackhole(dst)) is not None:
        text = f"no pod has {dst}, and {v.name} has lost its blackhole for {own.dst}"
        if entry is not None:
            text += f": it takes `{iproute.route_text(entry, v.dev)}`"
        return v.problem(Cause.NOT_IN_USE, text, line=mend.entry_line(own), why=own.why)
    network = next((one for one in config.network if dst in one), None)
    if network is None:
        return None
    text = f"{dst} is in the pod network {network}, and in no lease that {v.name} uses"
    if entry is not None:
        text += f": it takes `{iproute.route_text(entry, v.dev)}`"
    return v.problem(
        Cause.NO_ROUTE,
        text,
        remedy="start the agent of the node that is to have it; podwire status tells whose lease is"
        " not used, and why",
    )


def lost_address(v: Vantage, wanted: Address) -> Problem:
    """This place is to have the packet's target as its own address, and has not."""
    if (device := device_problem(v, wanted.dev)) is not None:
        return device
    return v.problem(
        Cause.NOT_IN_USE,
        f"{wanted.dev} of {v.name} has lost its address {wanted.ip}",
        interface=wanted.dev,
        line=mend.entry_line(wanted),
        why=wanted.why,
    )
