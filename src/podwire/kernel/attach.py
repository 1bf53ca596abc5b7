"""A pod's interface in the kernel: made, checked and taken away, in as few messages as it takes.

Two batches make one: in the node's namespace the veth pair, its far end born inside the pod; in
the pod's, addresses and routes. A failure takes back what was made.
"""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

from podwire.errors import KernelError
from podwire.kernel import messages, netns
from podwire.kernel.messages import AddressKey, LinkState, RouteKey, RouteValue
from podwire.kernel.netlink import NetlinkSocket, kernel_error
from podwire.model.state import DOOMED_GROUP, Address, Link, Route, Veth

#: The protocol of routes inside a pod: they are the administrator's (RTPROT_BOOT), as `ip` and
#: the reference plugins leave them, and no reconciler runs there.
_POD_ROUTE_PROTOCOL = 3


def links(sock: NetlinkSocket) -> dict[str, LinkState]:
    """All links of the socket's namespace, by name."""
    dump = sock.dump(messages.RTM_GETLINK, messages.get_links())
    return {link.name: link for link in map(messages.parse_link, dump)}


def find_link(sock: NetlinkSocket, name: str) -> LinkState | None:
    """One link of the socket's namespace, or None."""
    answer = sock.get(messages.RTM_GETLINK, messages.get_link(name))
    return messages.parse_link(answer) if answer is not None else None


def socket_in(netns_fd: int) -> NetlinkSocket:
    """A netlink socket inside another namespace."""
    with netns.entered(netns_fd):
        return NetlinkSocket()


def attach(
    sock: NetlinkSocket, host: Link, pod: tuple[Address | Route, ...], netns_fd: int
) -> LinkState:
    """Make a pod's veth pair and configure its inside; the state of the pod's end.

    `sock` is of the node's namespace, `netns_fd` the pod's. Raises KernelError, with EEXIST where
    either interface exists; nothing is left behind then.
    """
    if not isinstance(host.kind, Veth):
        raise TypeError(f"{host.name} is not a veth")
    assert host.master is not None  # noqa: S101  a port always has its bridge
    bridge = find_link(sock, host.master)
    if bridge is None:
        raise KernelError(
            f"bridge {host.master} does not exist",
            errno=errno.ENODEV,
            remedy="wait until the agent has made it (see `podwire plan`)",
        )
    if not bridge.ours:
        raise KernelError(
            f"link {host.master} was not made by Podwire",
            errno=errno.EBUSY,
            remedy=f"delete it (ip link del {host.master}); the agent then makes its own",
        )
    inside = socket_in(netns_fd)
    try:
        creation = messages.create_link(host, {host.master: bridge.index}, peer_netns_fd=netns_fd)
        sock.do(creation, what=f"create {host.name} with peer {host.kind.peer}")
        try:
            sock.do(
                messages.set_link(host.name, alias=host.alias, hairpin=host.hairpin),
                what=f"set up {host.name}",
            )
            return _configure(inside, host.kind.peer, pod)
        except BaseException:
            detach(sock, host.name)
            raise
    finally:
        inside.close()


def _configure(inside: NetlinkSocket, ifname: str, pod: tuple[Address | Route, ...]) -> LinkState:
    link = find_link(inside, ifname)
    if link is None:
        raise KernelError(f"{ifname} vanished while it was being set up", errno=errno.ENODEV)
    batch = [messages.set_link("lo", up=True), messages.set_link(ifname, up=True)]
    batch += [_pod_message(entry, link.index) for entry in pod]
    if failures := inside.request(batch):
        first = failures[0]
        what = ("bring up lo", f"bring up {ifname}", *(f"add {entry}" for entry in pod))
        raise kernel_error(what[first.index], first)
    return link


def _pod_message(entry: Address | Route, index: int) -> bytes:
    if isinstance(entry, Address):
        return messages.add_address(_address_key(entry, index))
    key, value = _route_pair(entry, index)
    return messages.add_route(key, value, replace=False, protocol=_POD_ROUTE_PROTOCOL)


def _address_key(entry: Address, index: int) -> AddressKey:
    family = socket.AF_INET if entry.ip.version == 4 else socket.AF_INET6
    return AddressKey(index, family, entry.ip.ip.packed, entry.ip.network.prefixlen)


def _route_pair(entry: Route, index: int) -> tuple[RouteKey, RouteValue]:
    family = socket.AF_INET if entry.dst.version == 4 else socket.AF_INET6
    metric = 0 if entry.dst.version == 4 else messages.IPV6_DEFAULT_METRIC
    key = RouteKey(family, entry.dst.network_address.packed, entry.dst.prefixlen, metric)
    via = entry.via.packed if entry.via is not None else b""
    src = entry.src.packed if entry.src is not None else b""
    return key, RouteValue(index, via, src, entry.onlink)


def check(
    sock: NetlinkSocket, host: Link, pod: tuple[Address | Route, ...], netns_fd: int
) -> list[str]:
    """What is wrong with a pod's interface, one sentence a fault; empty when all is as planned."""
    if not isinstance(host.kind, Veth):
        raise TypeError(f"{host.name} is not a veth")
    faults: list[str] = []
    port = find_link(sock, host.name)
    if port is None:
        return [f"{host.name} does not exist on the node"]
    bridge = find_link(sock, host.master or "")
    if bridge is None or port.master != bridge.index:
        faults.append(f"{host.name} is not a port of {host.master}")
    if not port.up:
        faults.append(f"{host.name} is down")
    with socket_in(netns_fd) as inside:
        link = find_link(inside, host.kind.peer)
        if link is None:
            return [*faults, f"{host.kind.peer} does not exist in the pod"]
        if not link.up:
            faults.append(f"{host.kind.peer} is down in the pod")
        if link.mac != host.kind.peer_mac:
            faults.append(f"{host.kind.peer} has MAC {link.mac.hex(':')} in the pod")
        addresses = {
            messages.parse_address(body)[0]
            for body in inside.dump(messages.RTM_GETADDR, messages.get_addresses())
        }
        routes = {
            (key, value)
            for family in (socket.AF_INET, socket.AF_INET6)
            for body in inside.dump(messages.RTM_GETROUTE, messages.get_routes(family, 0))
            for key, value, _, _ in [messages.parse_route(body)]
        }
    for entry in pod:
        if isinstance(entry, Address):
            if _address_key(entry, link.index) not in addresses:
                faults.append(f"address {entry.ip} is missing in the pod")
        elif _route_pair(entry, link.index) not in routes:
            faults.append(f"route {entry.dst} via {entry.via} is missing in the pod")
    return faults


def cut_off(sock: NetlinkSocket, host_ifname: str) -> None:
    """Stop a pod's port from forwarding, at once; no error where there is none."""
    port = find_link(sock, host_ifname)
    if port is not None and port.master:
        sock.request([messages.disable_port(port.index)])


def detach(sock: NetlinkSocket, *host_ifnames: str) -> None:
    """Delete the veth pairs of these host ends that exist and are ours. Takes some 20 ms in all.

    The kernel waits for a grace period with each deletion, so many links are deleted as one: they
    are moved to the group of the doomed, and that is deleted. See `cut_off` for what can't wait.
    """
    found = links(sock)
    doomed = [found[name] for name in host_ifnames if name in found and found[name].ours]
    if not doomed:
        return
    batch = [messages.set_link(link.name, group=DOOMED_GROUP) for link in doomed]
    for failure in sock.request([*batch, messages.delete_group(DOOMED_GROUP)]):
        if failure.errno != errno.ENODEV:  # The pod's namespace died meanwhile and took it along.
            names = ", ".join(link.name for link in doomed)
            raise kernel_error(f"delete {names}", failure)


def addresses(sock: NetlinkSocket, index: int) -> list[str]:
    """The global addresses of a link with their prefix lengths, as text."""
    found = []
    for body in sock.dump(messages.RTM_GETADDR, messages.get_addresses()):
        key, scope = messages.parse_address(body)
        if key.ifindex == index and scope == messages.RT_SCOPE_UNIVERSE:
            found.append(f"{ip_address(key.ip)}/{key.prefixlen}")
    return found
