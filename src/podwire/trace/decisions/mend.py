"""Remedies: the line that mends an entry, and where it is to be typed.

What lives here: desired entries as the very lines that `podwire plan` prints. What does not: what
is wrong. Text only; nothing is applied.
"""

from __future__ import annotations

from ipaddress import ip_address
from shlex import quote

from podwire.kernel import links, sysctl
from podwire.kernel.link_queries import find_link
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe.lookup_messages import ROUTE_TYPES, RTN_UNICAST, FibEntry
from podwire.kernel.tables import TABLE_OF, Op, Scope
from podwire.model.state import (
    Address,
    Blackhole,
    FdbEntry,
    Link,
    Neighbor,
    PortFdbEntry,
    Route,
    Vxlan,
)
from podwire.trace.iproute import prefix_text, protocol_name


def entry_line(
    entry: Route | Blackhole | Address | Neighbor | FdbEntry | PortFdbEntry,
    *,
    replace: bool = False,
) -> str:
    """`ip route add …`; with `replace`, where something else is in its place."""
    table = TABLE_OF[type(entry)]
    dev = entry.dev if not isinstance(entry, Blackhole) else ""
    key, value = table.wire(entry, Scope({dev: 1}))
    return Op(table, "change" if replace else "add", key, value).line({1: dev})


def link_line(sock: NetlinkSocket, link: Link) -> str:
    """What makes a link as it should be; empty where no line can, as for a pod's cable.

    A link of somebody else's in its place has to go first.
    """
    names = {link.name, link.master or "", link.kind.dev if isinstance(link.kind, Vxlan) else ""}
    actual = {name: state for name in names - {""} if (state := find_link(sock, name)) is not None}
    difference = links.diff({link.name: link}, actual)
    if difference.refused:
        return f"ip link del {link.name}"
    return "; ".join(op.line().replace("\n", "; ") for op in difference.ops if op.name == link.name)


def sysctl_line(key: str, value: str) -> str:
    """What sets a sysctl."""
    return sysctl.line(key, value)


def removal_line(entry: FibEntry, dev: str) -> str:
    """What takes a foreign route out of the way."""
    words = ["ip route del"]
    words += [ROUTE_TYPES[entry.kind]] if entry.kind != RTN_UNICAST else []
    words.append(prefix_text(entry.dst))
    words += [f"via {ip_address(entry.via)}"] if entry.via else []
    words += [f"dev {quote(dev)}"] if entry.kind == RTN_UNICAST else []
    words += [f"table {entry.table}"] if entry.table != 254 else []
    words.append(f"proto {protocol_name(entry.protocol)}")
    return " ".join(words)


class Remedies:
    """Says where a line is to be typed, and who would have done it by itself.

    `held`: the agent does not mend the kernel now, since an operator asked it not to.
    """

    def __init__(self, node: str, *, held: bool = False) -> None:
        self._node = node
        self._held = held

    def here(self, line: str) -> str:
        """On this node, for what its agent keeps as it should be."""
        if self._held:
            return f"{line}  # on {self._node}, or: podwire agent resume --node {self._node}"
        return f"{line}  # on {self._node}; its agent does it by itself unless held or dead"

    def there(self, line: str, node: str) -> str:
        """On another node, likewise."""
        return f"{line}  # on {node}; its agent does it by itself unless held or dead"

    def by_hand(self, line: str, where: str) -> str:
        """For what no agent mends."""
        return f"{line}  # {where}"

    def attach_again(self, pod: str) -> str:
        """For a pod's cable, which only the agent can make."""
        if self._held:
            return f"podwire agent resume --node {self._node}  # it attaches pod {pod} anew"
        return f"the agent of {self._node} attaches pod {pod} anew by itself, if it is alive"
