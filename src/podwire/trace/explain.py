"""`podwire explain`, at the agent: what a thing is, who asked for it, what breaks without it.

What lives here: reading what a person typed, and which explanation that is for. What does not: the
explanations (`podwire.trace.explanations`).

    answer(request, knowledge) -> wire.Explained

`request` is a `wire.Explain`; `knowledge` is what the agent knows: `Knowledge(node=…, intent=…,
nodes=…, sock=…, held=…)`, with the node's name, an `Intent` of now with the attachments, all nodes
by name (`Nodes.by_name`), and a NETLINK_ROUTE socket of the node's namespace, which the calling
thread is in. It blocks for some milliseconds, on a large node for some 100.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address, ip_network

from podwire.errors import InputError
from podwire.model.state import IPAddress, IPNetwork, parse_mac
from podwire.trace import wire
from podwire.trace.explanations.addresses import explain_ip
from podwire.trace.explanations.interfaces import explain_link
from podwire.trace.explanations.knowledge import Explanation, Knowledge
from podwire.trace.explanations.neighbors import explain_fdb, explain_neighbor
from podwire.trace.explanations.routes import explain_route, explain_route_to
from podwire.trace.explanations.rules import explain_rule

_MAC_LIKE = re.compile(r"[0-9a-fA-F]{1,2}([:-][0-9a-fA-F]{1,2}){5}")
_IFNAME_BYTES = 15  # IFNAMSIZ without the terminating zero


def answer(request: wire.Explain, about: Knowledge) -> wire.Explained:
    """Raises InputError for what can't be read as a thing of that kind, KernelError where the
    kernel can't be asked."""
    explain = _KINDS.get(request.kind)
    if explain is None:
        raise InputError(
            f"{request.kind!r} is no kind of thing; expected one of {', '.join(_KINDS)}",
            field="KIND",
        )
    found = explain(about, request.thing.strip())
    return wire.Explained(
        to=request.id,
        found=found.found,
        text=found.text,
        why=found.why,
        without=found.without,
        details=tuple(found.details),
    )


def _route(about: Knowledge, thing: str) -> Explanation:
    words = thing.split()
    if words and words[0] in ("default", "any"):
        version = 6 if "-6" in words or "6" in words[1:] else 4
        return explain_route(about, ip_network("0.0.0.0/0" if version == 4 else "::/0"))
    first = words[0] if words else ""
    if "/" not in first:
        return explain_route_to(about, _ip(first, "a prefix (10.244.2.0/24), an IP or `default`"))
    try:
        prefix: IPNetwork = ip_network(first, strict=False)
    except ValueError as error:
        raise _wrong(first, "a prefix such as 10.244.2.0/24", str(error)) from None
    return explain_route(about, prefix)


def _neighbor(about: Knowledge, thing: str) -> Explanation:
    return explain_neighbor(about, *_entry(thing))


def _fdb(about: Knowledge, thing: str) -> Explanation:
    return explain_fdb(about, *_entry(thing))


def _entry(thing: str) -> tuple[IPAddress | bytes, str]:
    """`IP|MAC`, or with the interface: `IP dev DEV`, as `ip neigh` and `bridge fdb` print it."""
    words = thing.split()
    first = words[0] if words else ""
    dev = words[words.index("dev") + 1] if "dev" in words[:-1] else ""
    if _MAC_LIKE.fullmatch(first):
        return _mac(first), dev
    return _ip(first.partition("/")[0], "an IP or a MAC (0a:58:0a:f4:01:02)"), dev


def _link(about: Knowledge, thing: str) -> Explanation:
    # As `ip link` prints it: `cni0:`, `eth0@if5`.
    name = thing.removeprefix("dev ").rstrip(":").partition("@")[0].strip()
    if _MAC_LIKE.fullmatch(thing):
        return explain_link(about, mac=_mac(thing))
    plain = name.isprintable() and not set(name) & set("/ ")
    if not name or not plain or len(name.encode()) > _IFNAME_BYTES:
        raise _wrong(thing, f"an interface's name (at most {_IFNAME_BYTES} bytes) or its MAC")
    return explain_link(about, name)


def _rule(about: Knowledge, thing: str) -> Explanation:
    if not thing:
        raise _wrong(thing, "a handle, a chain's name, or words of a rule")
    return explain_rule(about, thing)


def _address(about: Knowledge, thing: str) -> Explanation:
    return explain_ip(about, _ip(thing.partition("/")[0], "an IP address"))


_KINDS: dict[str, Callable[[Knowledge, str], Explanation]] = {
    "route": _route,
    "neigh": _neighbor,
    "fdb": _fdb,
    "link": _link,
    "rule": _rule,
    "ip": _address,
}
KINDS = tuple(_KINDS)


def _ip(text: str, expected: str) -> IPAddress:
    try:
        return ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        raise _wrong(text, expected) from None


def _mac(text: str) -> bytes:
    pairs = re.split("[:-]", text)
    return parse_mac(":".join(pair.zfill(2) for pair in pairs))


def _wrong(text: str, expected: str, reason: str = "") -> InputError:
    told = f" ({reason})" if reason and "does not appear" not in reason else ""
    return InputError(f"{text!r} is not {expected}{told}", field="THING")
