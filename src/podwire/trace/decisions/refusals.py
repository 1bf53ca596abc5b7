"""Why the kernel does not forward a packet that has a route: switched off, or its source.

What lives here: forwarding and the reverse-path filter (RFC 3704; ip-sysctl of the kernel). What
does not: routes themselves.
"""

from __future__ import annotations

from podwire.kernel.observe import lookup
from podwire.kernel.observe.interfaces import InterfaceState
from podwire.kernel.observe.lookup_messages import RTN_LOCAL, RouteQuestion
from podwire.trace import iproute
from podwire.trace.decisions import mend
from podwire.trace.decisions.flow import Flow
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.decisions.ways import way_problem
from podwire.trace.model import Cause, Problem

_STRICT = 1


def forwarding_problem(v: Vantage, flow: Flow, iif: InterfaceState) -> Problem | None:
    """Whether packets that came in by `iif` are not passed on at all."""
    everywhere = lookup.general_settings(v.sock, flow.version).forwarding
    if flow.version == 6:
        force = f"net/ipv6/conf/{iif.name}/force_forwarding"
        if everywhere or lookup.sysctl_value(v.sock, force) == "1":
            return None
        key = "net/ipv6/conf/all/forwarding"
    else:
        one = lookup.settings(v.sock, 4, iif.index)
        if one is None or one.forwarding:
            return None
        key = f"net/ipv4/conf/{iif.name}/forwarding" if everywhere else "net/ipv4/ip_forward"
    if v.is_pod:
        return v.problem(
            Cause.NOT_IN_USE,
            f"{flow.dst} is no address of {v.name}",
            interface=iif.name,
            remedy=f"look who has {flow.dst}: podwire explain ip {flow.dst}",
        )
    wanted = v.intent.sysctl(key)
    return v.problem(
        Cause.NOT_FORWARDING,
        f"{v.name} does not forward IPv{flow.version}: {key.replace('/', '.')} = 0",
        interface=iif.name,
        line=mend.sysctl_line(key, "1"),
        why=wanted.why if wanted is not None else None,
    )


def reverse_path_problem(v: Vantage, flow: Flow, iif: InterfaceState) -> Problem | None:
    """Whether the packet's source is not believed: the kernel would answer it another way.

    IPv6 has no such filter.
    """
    if flow.version == 6:
        return None
    back = lookup.route(v.sock, RouteQuestion(dst=flow.src.packed))
    if not back.errno and back.kind == RTN_LOCAL:
        return v.problem(
            Cause.RP_FILTER,
            f"its source {flow.src} is an address of {v.name} itself",
            interface=iif.name,
            remedy=f"look who else has {flow.src}: podwire explain ip {flow.src}",
        )
    one = lookup.settings(v.sock, 4, iif.index)
    strictness = max(
        lookup.general_settings(v.sock, 4).rp_filter, one.rp_filter if one is not None else 0
    )
    if not strictness:
        return None
    where = "nowhere" if back.errno else iproute.way_text(v.dev(back.ifindex), back.via)
    if not back.errno and (strictness != _STRICT or back.ifindex == iif.index):
        return None
    taken = f" (`{iproute.route_text(back.match, v.dev)}`)" if back.match is not None else ""
    text = (
        f"reverse-path filter (rp_filter = {strictness}): it came in by {iif.name}, and answers"
        f" to {flow.src} would go {where}{taken}"
    )
    wanted = v.intent.way(flow.src)
    if wanted is not None and (back.match is None or not v.follows(back.match, wanted)):
        route = way_problem(v, flow.src, wanted, back.match)
        return v.problem(
            Cause.RP_FILTER, text, interface=iif.name, remedy=route.remedy, why=route.why
        )
    loose = mend.sysctl_line(f"net/ipv4/conf/{iif.name}/rp_filter", "2" if not back.errno else "0")
    return v.problem(
        Cause.RP_FILTER,
        text,
        interface=iif.name,
        remedy=v.remedies.by_hand(loose, v.where),
    )
