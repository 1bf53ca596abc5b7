"""A pod's interface in the kernel: made, checked and taken away, in as few messages as it takes.

Two batches make one: in the node's namespace the veth pair, its far end born inside the pod, with
what the node holds for it; in the pod's, addresses and routes. The host end comes up last but for
the routes that hang on it, when settings and guards are there. A failure takes back what was made.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any

from podwire.errors import KernelError
from podwire.kernel import guards, link_messages, messages, netns, nft_elements, sysctl
from podwire.kernel.guards import Guards
from podwire.kernel.link_messages import LinkState
from podwire.kernel.links import settings
from podwire.kernel.messages import NeighborKey, RouteValue
from podwire.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket, kernel_error
from podwire.kernel.tables import ADDRESSES, ROUTES, TABLE_OF, Op, Scope
from podwire.model.describe import describe, kind_of
from podwire.model.state import (
    DOOMED_GROUP,
    Address,
    Blackhole,
    Entry,
    Link,
    Neighbor,
    NftElement,
    PortGuard,
    Route,
    Sysctl,
    Veth,
)

_SIOCGIFINDEX = 0x8933
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

#: The protocol of routes inside a pod: they are the administrator's (RTPROT_BOOT), as `ip` and
#: the reference plugins leave them, and no reconciler runs there.
_POD_ROUTE_PROTOCOL = 3

#: What a pod's own namespace holds.
PodEntry = Address | Route | Neighbor


def links(sock: NetlinkSocket) -> dict[str, LinkState]:
    """All links of the socket's namespace, by name."""
    dump = sock.dump(messages.RTM_GETLINK, link_messages.get_links())
    return {link.name: link for link in map(link_messages.parse_link, dump)}


def find_link(sock: NetlinkSocket, which: str | int) -> LinkState | None:
    """One link of the socket's namespace, by name or index, or None."""
    answer = sock.get(messages.RTM_GETLINK, link_messages.get_link(which))
    return link_messages.parse_link(answer) if answer is not None else None


def socket_in(netns_fd: int) -> NetlinkSocket:
    """A netlink socket inside another namespace."""
    with netns.entered(netns_fd):
        return NetlinkSocket()


def attach(
    sock: NetlinkSocket,
    host: Link | Sequence[Entry],
    pod: Sequence[PodEntry],
    netns_fd: int,
    ports: Guards | None = None,
) -> None:
    """Make a pod's veth pair, configure its inside and what the node holds for it.

    `host` is the veth's link first, then its sysctls, routes, neighbours, set elements and guard,
    which `ports` loads. `sock` is of the node's namespace, as the calling thread is; `netns_fd` is
    the pod's. Raises KernelError, with EEXIST where either interface exists; nothing is left behind
    then.
    """
    entries = (host,) if isinstance(host, Link) else host
    port, veth = _port(entries)
    master = {port.master: _bridge_index(sock, port.master)} if port.master is not None else {}
    inside = socket_in(netns_fd)
    try:
        creation = link_messages.create_link(port, master, peer_netns_fd=netns_fd)
        sock.do(creation, what=f"create {port.name} with peer {veth.peer}")
        try:
            _configure_host(sock, port, entries, ports)
            _configure_pod(inside, veth.peer, pod)
            for bridge in master.values():
                _resolve_anew(sock, bridge, pod)
        except BaseException:
            _set_elements(entries, gone=True)
            detach(sock, port.name)
            raise
    finally:
        inside.close()


def _port(entries: Sequence[Entry]) -> tuple[Link, Veth]:
    port = entries[0]
    if not isinstance(port, Link) or not isinstance(port.kind, Veth):
        raise TypeError(f"the first of a pod's entries is no veth: {port}")
    return port, port.kind


def _bridge_index(sock: NetlinkSocket, name: str) -> int:
    bridge = find_link(sock, name)
    if bridge is None:
        raise KernelError(
            f"bridge {name} does not exist",
            errno=errno.ENODEV,
            remedy="wait until the agent has made it (see `podwire plan`)",
        )
    if not bridge.ours:
        raise KernelError(
            f"link {name} was not made by Podwire",
            errno=errno.EBUSY,
            remedy=f"delete it (ip link del {name}); the agent then makes its own",
        )
    return bridge.index


def _configure_host(
    sock: NetlinkSocket, port: Link, entries: Sequence[Entry], ports: Guards | None
) -> None:
    for one in entries:
        if isinstance(one, Sysctl) and _is_amiss(one):
            sysctl.write(one.key, one.value)
    _set_elements(entries)
    index = _index_of(sock, port.name)
    ops = _ops(entries, Scope({port.name: index}))
    changes = settings(port)
    first = {name: changes.pop(name) for name in ("no_ipv6_address",) if name in changes}
    with contextlib.nullcontext(ports) if ports is not None else Guards() as own:
        # Whether the link is up is what the rest asks for.
        batch = [
            *([link_messages.set_link(port.name, **first)] if first else []),
            *_guard(entries, index, own),
            link_messages.set_link(port.name, **changes),
        ]
        failures = sock.request([*batch, *(op.message() for op in ops)])
    for failure in failures:
        # A setting of IPv6, on a machine that has none; a place for filters, where there is one.
        if (failure.index, failure.errno) in ((0, errno.EAFNOSUPPORT), (len(first), errno.EEXIST)):
            continue
        what = f"set up {port.name}"
        if failure.index >= len(batch):
            what = ops[failure.index - len(batch)].line({index: port.name})
        raise kernel_error(what, failure)


def _guard(entries: Iterable[Entry], index: int, ports: Guards) -> list[bytes]:
    """What hangs the port's guard up."""
    return [
        message
        for one in entries
        if isinstance(one, PortGuard)
        for message in ports.prepare(index, guards.wire(one))
    ]


def _is_amiss(one: Sysctl) -> bool:
    """Of a machine without IPv6 none of its settings is."""
    value = sysctl.read(one.key)
    return value != one.value and not (value is None and one.key.startswith("net/ipv6/"))


def _ops(entries: Iterable[Entry], scope: Scope) -> list[Op]:
    """Additions of what rtnetlink holds, routes last."""
    ops = []
    for one in entries:
        if isinstance(one, Link):
            if not one.link_local:
                continue
            table = ADDRESSES
        elif isinstance(one, Address | Neighbor | Route | Blackhole):
            table = TABLE_OF[type(one)]
        else:
            continue
        ops.append(Op(table, "add", *table.wire(one, scope), one.why))
    return sorted(ops, key=lambda op: op.table is ROUTES)


def _set_elements(entries: Iterable[Entry], *, gone: bool = False) -> None:
    """Add the set elements, or with `gone` delete those that are there."""
    keys = [nft_elements.untyped_key(one) for one in entries if isinstance(one, NftElement)]
    if not keys:
        return
    encode = nft_elements.delete if gone else nft_elements.add
    with NetlinkSocket(NETLINK_NETFILTER) as netfilter:
        failures = nft_elements.transact(netfilter, list(map(encode, keys)))
    if failures and not gone:
        key = keys[failures[0].index]
        raise KernelError(
            f"{nft_elements.line('add', key)}: {os.strerror(failures[0].errno)}",
            errno=errno.EAGAIN if failures[0].errno == errno.ENOENT else failures[0].errno,
            remedy="wait until the agent has made its nft tables (see `podwire plan`)",
        )


def _configure_pod(inside: NetlinkSocket, ifname: str, pod: Sequence[PodEntry]) -> None:
    try:
        scope = Scope({ifname: _index_of(inside, ifname)})
    except KernelError as error:
        raise KernelError(
            f"{ifname} vanished while it was being set up", errno=error.errno
        ) from error
    batch = [link_messages.set_link("lo", up=True), link_messages.set_link(ifname, up=True)]
    batch += [_pod_message(entry, scope) for entry in pod]
    if failures := inside.request(batch):
        first = failures[0]
        what = (
            "bring up lo",
            f"bring up {ifname}",
            *(f"add {kind_of(entry)} {describe(entry)}" for entry in pod),
        )
        raise kernel_error(what[first.index], first)


def _resolve_anew(sock: NetlinkSocket, bridge: int, pod: Sequence[PodEntry]) -> None:
    """Have the node ask for the pod's MAC with the next packet. If somebody sent to it while it was
    not there, the node would wait out the second until its next ARP request is due."""
    addresses = [one.ip for one in pod if isinstance(one, Address)]
    sock.request(
        [
            messages.delete_neighbor(NeighborKey(bridge, _FAMILY[ip.version], ip.packed))
            for ip in addresses
        ]
    )  # It is no failure if nobody did.


def _pod_message(entry: PodEntry, scope: Scope) -> bytes:
    table = TABLE_OF[type(entry)]
    key, value = table.wire(entry, scope)
    message: bytes = table.add(key, _of_pod(value))  # All tables of theirs are rtnetlink's.
    return message


def _of_pod(value: Any) -> Any:
    """The value of a route inside of a pod, or of another entry as it is."""
    if isinstance(value, RouteValue):
        return value._replace(protocol=_POD_ROUTE_PROTOCOL)
    return value


def _index_of(sock: NetlinkSocket, name: str) -> int:
    """A link's index, asked of the namespace that the socket is of (netdevice(7))."""
    request = struct.pack("16si20x", name.encode()[:15], 0)
    try:
        answer = fcntl.ioctl(sock.fileno(), _SIOCGIFINDEX, request)
    except OSError as error:
        raise KernelError(
            f"link {name}: {os.strerror(error.errno or 0)}", errno=error.errno or 0
        ) from error
    index: int = struct.unpack_from("i", answer, 16)[0]
    return index


def check(
    sock: NetlinkSocket, host: Link | Sequence[Entry], pod: Sequence[PodEntry], netns_fd: int
) -> list[str]:
    """What is wrong with a pod's interface, one sentence a fault; empty when all is as planned."""
    entries = (host,) if isinstance(host, Link) else host
    port, veth = _port(entries)
    state = find_link(sock, port.name)
    if state is None:
        return [f"{port.name} does not exist on the node"]
    faults = _host_faults(sock, port, state, entries)
    with socket_in(netns_fd) as inside:
        link = find_link(inside, veth.peer)
        if link is None:
            return [*faults, f"{veth.peer} does not exist in the pod"]
        if not link.up:
            faults.append(f"{veth.peer} is down in the pod")
        if link.mac != veth.peer_mac:
            faults.append(f"{veth.peer} has MAC {link.mac.hex(':')} in the pod")
        faults += _missing(inside, pod, Scope({veth.peer: link.index}), "in the pod")
    return faults


def _host_faults(
    sock: NetlinkSocket, port: Link, state: LinkState, entries: Sequence[Entry]
) -> list[str]:
    faults: list[str] = []
    if port.master is not None:
        bridge = find_link(sock, port.master)
        if bridge is None or state.master != bridge.index:
            faults.append(f"{port.name} is not a port of {port.master}")
    elif state.master:
        faults.append(f"{port.name} is a port of a bridge")
    if not state.up:
        faults.append(f"{port.name} is down")
    faults += [
        f"sysctl {one.key} is not {one.value}"
        for one in entries
        if isinstance(one, Sysctl) and _is_amiss(one)
    ]
    keys = [nft_elements.untyped_key(one) for one in entries if isinstance(one, NftElement)]
    if keys:
        with NetlinkSocket(NETLINK_NETFILTER) as netfilter:
            faults += [
                f"{nft_elements.text(key)} is missing in nft set {key.table} {key.set}"
                for key in keys
                if not nft_elements.is_there(netfilter, key)
            ]
    for one in entries:
        if isinstance(one, PortGuard):
            found = guards.guard_at(sock, state.index)
            if found is None or not found.lets_pass(guards.wire(one)):
                faults.append(f"{port.name} has no guard, or another one (tc filter show)")
    return faults + _missing(sock, entries, Scope({port.name: state.index}), "on the node")


def _missing(sock: NetlinkSocket, entries: Sequence[Entry], scope: Scope, where: str) -> list[str]:
    """The addresses, routes and neighbours of a link that are not there."""
    (index,) = scope.values()
    found: set[Any] = set()
    for body in sock.dump(messages.RTM_GETADDR, messages.get_addresses()):
        found.add((messages.parse_address(body)[0], None))
    for family in (socket.AF_INET, socket.AF_INET6):
        question = messages.get_routes(family, 0, ifindex=index)
        for body in sock.dump(messages.RTM_GETROUTE, question):
            key, value, _, _ = messages.parse_route(body)
            found.add((key, _of_pod(value)))
        question = messages.get_neighbors(family, index)
        for body in sock.dump(messages.RTM_GETNEIGH, question):
            _, _, state, ip, mac = messages.parse_neighbor(body)
            if state & messages.NUD_PERMANENT:
                found.add((NeighborKey(index, family, ip), mac))
    faults = []
    for entry in entries:
        if not isinstance(entry, Address | Route | Neighbor):
            continue
        key, value = TABLE_OF[type(entry)].wire(entry, scope)
        if (key, _of_pod(value)) in found:
            continue
        if isinstance(entry, Address):
            faults.append(f"address {entry.ip} is missing {where}")
        elif isinstance(entry, Neighbor):
            faults.append(f"neighbour {entry.ip} is missing {where}")
        else:
            via = f" via {entry.via}" if entry.via is not None else ""
            faults.append(f"route {entry.dst}{via} is missing {where}")
    return faults


def cut_off(sock: NetlinkSocket, host_ifname: str) -> None:
    """Let nothing pass a pod's host end any more, at once; no error where there is none."""
    port = find_link(sock, host_ifname)
    if port is None:
        return
    if port.master:
        sock.request([link_messages.disable_port(port.index)])
    else:
        sock.request([link_messages.set_link(host_ifname, up=False)])


def detach(sock: NetlinkSocket, *host_ifnames: str) -> None:
    """Delete the veth pairs of these host ends that exist and are ours. Takes some 20 ms in all.

    The kernel waits for a grace period with each deletion, so many links are deleted as one: they
    are moved to the group of the doomed, and that is deleted. See `cut_off` for what can't wait.
    """
    found = links(sock)
    doomed = [found[name] for name in host_ifnames if name in found and found[name].ours]
    if not doomed:
        return
    batch = [link_messages.set_link(link.name, group=DOOMED_GROUP) for link in doomed]
    for failure in sock.request([*batch, link_messages.delete_group(DOOMED_GROUP)]):
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
