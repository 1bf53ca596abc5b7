"""Routes: by their prefix, or the one that an address takes."""

from __future__ import annotations

from podwire.kernel.observe import lookup
from podwire.kernel.observe.entries import routes_of
from podwire.kernel.observe.lookup_messages import (
    REFUSING,
    RTN_LOCAL,
    RTN_UNICAST,
    FibEntry,
    RouteQuestion,
)
from podwire.model.state import Address, Blackhole, IPAddress, IPNetwork, Route, Tun, within
from podwire.trace import iproute
from podwire.trace.decisions import mend
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.decisions.ways import way_problem
from podwire.trace.explanations.knowledge import (
    Details,
    Explanation,
    Knowledge,
    endpoints,
    node_name,
)


def explain_route(about: Knowledge, prefix: IPNetwork) -> Explanation:
    """The entry for exactly this prefix."""
    v = about.vantage()
    entries = routes_of(about.sock, prefix)
    wanted = about.intent.prefix(prefix)
    if not entries and wanted is None:
        taken = lookup.fib_entry(about.sock, RouteQuestion(dst=prefix.network_address.packed))
        text = f"{about.node} has no route for {prefix}"
        if prefix.prefixlen == 0:
            text = f"{about.node} has no default route for IPv{prefix.version}"
        elif taken is not None:
            text += f"; {prefix.network_address} takes `{iproute.route_text(taken, v.dev)}`"
        return Explanation(found=False, text=text)
    return _explained(about, v, prefix, entries, wanted)


def explain_route_to(about: Knowledge, ip: IPAddress) -> Explanation:
    """The entry that packets from the node to an address take."""
    v = about.vantage()
    entry = lookup.fib_entry(about.sock, RouteQuestion(dst=ip.packed))
    found = entry or lookup.refusing_entry(about.sock, ip.packed)
    wanted = about.intent.way(ip)
    if found is None:
        if wanted is None:
            return Explanation(found=False, text=f"{about.node} has no route to {ip}")
        return explain_route(about, _network(wanted))
    answer = _explained(about, v, found.dst, [found], about.intent.prefix(found.dst))
    elsewhere = wanted is not None and _network(wanted) != found.dst and found.kind != RTN_LOCAL
    if elsewhere and wanted is not None and not v.follows(found, wanted):
        problem = way_problem(v, ip, wanted, entry)
        *others, show = (one for one in answer.details if one[0] != "mend")
        answer.details = [*others, ("wrong", problem.text), ("mend", problem.remedy), show]
    return answer


def _explained(
    about: Knowledge,
    v: Vantage,
    prefix: IPNetwork,
    entries: list[FibEntry],
    wanted: Route | Address | Blackhole | None,
) -> Explanation:
    answer = Explanation(text="", details=[])
    answer.details += [("entry", iproute.route_text(one, v.dev)) for one in entries]
    if wanted is not None:
        _ours(about, answer, prefix, wanted)
        if not any(v.follows(one, wanted) for one in entries) and not _is_own(entries):
            answer.details += _otherwise_than(v, prefix, wanted, entries)
    else:
        _theirs(about, answer, v, prefix, entries[0])
    family = "-6 " if prefix.version == 6 else ""
    answer.details.append(
        ("show", f"ip {family}route show table all {iproute.prefix_text(prefix)}")
    )
    return answer


def _otherwise_than(
    v: Vantage,
    prefix: IPNetwork,
    wanted: Route | Address | Blackhole,
    entries: list[FibEntry],
) -> Details:
    """How the kernel's entries differ from the wanted one, and what mends that."""
    if isinstance(wanted, Blackhole):
        line = v.remedies.here(mend.entry_line(wanted))
        return [("wrong", f"{v.name} has no blackhole for {prefix}"), ("mend", line)]
    first = next((one for one in entries if one.kind == RTN_UNICAST), None)
    missing = way_problem(v, prefix.network_address, wanted, first)
    return [("wrong", missing.text), ("mend", missing.remedy)]


def _ours(
    about: Knowledge, answer: Explanation, prefix: IPNetwork, wanted: Route | Address | Blackhole
) -> None:
    answer.why = wanted.why
    if isinstance(wanted, Blackhole):
        answer.text = f"{about.node}'s own addresses for pods: what none of its pods has ends here"
        answer.without = (
            f"packets to an address of {prefix} that no pod has would"
            f" {about.otherwise(prefix.version)}"
        )
    elif isinstance(wanted, Route) and (pod := about.intent.pod_at_port(wanted.dev)) is not None:
        answer.text = f"the way from {about.node} to pod {pod.pod}, by its cable {wanted.dev}"
        answer.without = f"pod {pod.pod} would not be reached, not from {about.node} either"
    elif isinstance(wanted, Route):
        peer = node_name(wanted.why)
        way = f"through the tunnel {wanted.dev}"
        config = about.intent.config
        if config is not None and wanted.dev == config.underlay.dev:
            way = f"a plain one over {wanted.dev}, without a tunnel"
        answer.text = f"the way from {about.node} to {peer}'s pods, {way}"
        answer.without = (
            f"packets from {about.node} and its pods to {peer}'s pods would"
            f" {about.otherwise(prefix.version)}"
        )
    elif _is_tun(about, wanted.dev):
        answer.text = (
            f"the pod network behind the UDP tunnel {wanted.dev}, whose process knows which node"
            " has what"
        )
        answer.without = f"{about.node} and its pods would not reach pods of other nodes"
    elif prefix.prefixlen == prefix.max_prefixlen:
        answer.text = f"an address of {about.node}'s own, on {wanted.dev}"
        answer.without = f"what the other nodes answer to {wanted.ip.ip} would not arrive"
    elif about.intent.config is not None and about.intent.config.fabric.is_one_segment:
        answer.text = f"the segment that all pods of the cluster are in, by {wanted.dev}"
        answer.without = f"{about.node} itself would not reach any pod"
    else:
        answer.text = f"the subnet of {about.node}'s own pods, which are on {wanted.dev}"
        answer.without = f"nothing but pods of {about.node} itself would reach its pods"


def _theirs(
    about: Knowledge, answer: Explanation, v: Vantage, prefix: IPNetwork, entry: FibEntry
) -> None:
    maker = iproute.maker(entry.protocol)
    config = about.intent.config
    peers = [
        ip
        for name, node in about.nodes.items()
        for ip in (endpoints(node) if name != about.node else ())
        if ip in prefix
    ]
    if entry.kind == RTN_LOCAL:
        own = about.intent.address(prefix.network_address)
        answer.text = f"an address of {about.node}'s own, on {v.dev(entry.ifindex)}"
        answer.why = own.why if own is not None else None
        answer.without = f"{about.node} would not take packets to it for its own"
        return
    if prefix.prefixlen == 0:
        answer.text = "where everything goes that no other route is for; not made by Podwire"
        answer.without = f"{about.node} and its pods would reach nothing outside of the cluster"
    elif peers:
        answer.text = "the network between the nodes; not made by Podwire"
        answer.without = f"the tunnel would not reach {about.behind(peers)}"
    else:
        answer.text = "not made by Podwire"
        answer.without = "nothing of the pod network, as far as this node knows"
    # The default route, around all of it, does not count.
    if config is not None and any(within(prefix, one) for one in config.network):
        what = "refuses" if entry.kind in REFUSING else "takes"
        answer.details.append(("beware", f"it {what} packets of the pod network"))
        answer.without = ""
        removal = mend.removal_line(entry, v.dev(entry.ifindex))
        answer.details.append(("mend", about.remedies.by_hand(removal, v.where)))
    answer.details.append(("maker", maker))


def _is_tun(about: Knowledge, dev: str) -> bool:
    link = about.intent.link(dev)
    return link is not None and isinstance(link.kind, Tun)


def _is_own(entries: list[FibEntry]) -> bool:
    return any(one.kind == RTN_LOCAL for one in entries)


def _network(wanted: Route | Address) -> IPNetwork:
    return wanted.dst if isinstance(wanted, Route) else wanted.ip.network
