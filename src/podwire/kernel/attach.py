"""A pod's interface in the kernel: made and taken away, in as few messages as it takes.

What lives here: both. What does not: whether one is still as it was made (`attach_check`).

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
from typing import Any

from podwire.errors import KernelError
from podwire.kernel import guards, link_messages, messages, nft_elements, sysctl
from podwire.kernel.guards import Guards
from podwire.kernel.link_queries import find_link, links
from podwire.kernel.links import settings
from podwire.kernel.messages import NeighborKey, RouteValue
from podwire.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket, kernel_error, socket_in
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
    port, veth = port_of(entries)
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


def port_of(entries: Sequence[Entry]) -> tuple[Link, Veth]:
    """The veth's link, which comes first. Raises TypeError where it does not."""
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
        if isinstance(one, Sysctl) and sysctl.is_amiss(one.key, one.value):
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
    message: bytes = table.add(key, of_pod(value))  # All tables of theirs are rtnetlink's.
    return message


def of_pod(value: Any) -> Any:
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
