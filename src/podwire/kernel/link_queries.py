"""Links as they are: all, or one, asked of the namespace that a socket is of."""

from __future__ import annotations

from ipaddress import ip_address

from podwire.kernel import link_messages, messages
from podwire.kernel.link_messages import LinkState
from podwire.kernel.netlink import NetlinkSocket


def links(sock: NetlinkSocket) -> dict[str, LinkState]:
    """All links of the socket's namespace, by name."""
    dump = sock.dump(messages.RTM_GETLINK, link_messages.get_links())
    return {link.name: link for link in map(link_messages.parse_link, dump)}


def find_link(sock: NetlinkSocket, which: str | int) -> LinkState | None:
    """One link of the socket's namespace, by name or index, or None."""
    answer = sock.get(messages.RTM_GETLINK, link_messages.get_link(which))
    return link_messages.parse_link(answer) if answer is not None else None


def addresses(sock: NetlinkSocket, index: int) -> list[str]:
    """The global addresses of a link with their prefix lengths, as text."""
    found = []
    for body in sock.dump(messages.RTM_GETADDR, messages.get_addresses()):
        key, scope = messages.parse_address(body)
        if key.ifindex == index and scope == messages.RT_SCOPE_UNIVERSE:
            found.append(f"{ip_address(key.ip)}/{key.prefixlen}")
    return found
