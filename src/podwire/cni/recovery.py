"""Attachments that stand in the kernel and that the database does not know: written down again.

The database is lost with a disk, by hand, or goes back in time with a backup. Without it, addresses
that running pods have would be handed out again. So at each start, pods' interfaces of this node
are compared with it, and what it lacks is made up from what stands here:

    alias of the host end         whose it is: the pod's name, or how a container's id begins
    the guard of its port         its addresses, as an agent of this node once gave them out
    the far end                   the interface inside; its addresses, where nothing guards it
    the bridge, if it is a port   prefix length and gateway

A container's id stands nowhere. But the host end's name is a digest of it, or of the pod's name:
so the first request for a container tells which record it is about.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from ipaddress import ip_address, ip_interface

from podwire.cni.naming import host_ifname, host_ifnames
from podwire.ipam.record import UNKNOWN, Key, PodIdentity, Record
from podwire.kernel import guards, nft_elements
from podwire.kernel.link_queries import addresses, links
from podwire.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from podwire.kernel.pod_ports import PodPort, pod_ports
from podwire.model.cluster import Attachment
from podwire.model.state import IPAddress, IPInterface
from podwire.plan.profiles import PROFILES
from podwire.plan.spoofing import BINDINGS, GUARDED
from podwire.plan.wiring import routed

#: As both wirings write it (`podwire.plan.wiring`).
_ALIAS = re.compile(r"podwire pod (\S+) \S+")
#: So much of a container's id stands in an alias.
_SHORT_ID = re.compile(r"[0-9a-f]{12}")
#: Of nft: the tables that may have the sets, and how long the port's name is in their keys.
_FAMILIES, _TABLE, _IFNAME_BYTES = ("bridge", "inet"), "podwire", 16


def find(names: Collection[str]) -> list[tuple[Attachment, PodIdentity]]:
    """What stands behind these host ends. Blocks, and raises KernelError."""
    with NetlinkSocket() as sock, NetlinkSocket(NETLINK_NETFILTER) as netfilter:
        guarded = _guarded(netfilter) | _at_ports(sock)
        found = []
        for port in pod_ports(sock, names):
            on_link = [ip_interface(ip) for ip in addresses(sock, port.master)]
            found.append(attachment_of(port, on_link if port.master else [], guarded))
        return found


def attachment_of(
    port: PodPort, on_link: Collection[IPInterface], guarded: Mapping[str, Collection[IPAddress]]
) -> tuple[Attachment, PodIdentity]:
    """An attachment without a container's id, if that is not known, and whose it is.

    `on_link` are the bridge's addresses; `guarded` the addresses that ports may send with, where
    anything guards them. No I/O.
    """
    match = _ALIAS.fullmatch(port.alias)
    owner = match[1] if match is not None else ""
    container, pod = "", PodIdentity()
    if port.name in host_ifnames(Key(owner, port.ifname), pod):
        container = owner  # So short that it is whole.
    elif _SHORT_ID.fullmatch(owner):
        container = f"{owner}{UNKNOWN}{port.name}"
    else:
        namespace, _, name = owner.rpartition("/")
        pod = PodIdentity(namespace, name)
    own = sorted(guarded[port.name], key=int) if port.name in guarded else _first_ones(port.ips)
    seen = [_seen(ip, on_link) for ip in sorted(own, key=lambda ip: ip.version)]
    attachment = Attachment(
        container_id=container or f"{UNKNOWN}{port.name}",
        ifname=port.ifname,
        netns=port.netns,
        host_ifname=port.name,
        mac=port.mac,
        ips=tuple(ip for ip, _ in seen),
        gateways=tuple(gateway for _, gateway in seen),
        pod=str(pod),
        mtu=port.mtu,
        # Where others are guarded and it is not, its pod had asked for that.
        may_spoof=bool(guarded) and port.name not in guarded,
    )
    return attachment, pod


def recorded_key(records: Mapping[Key, Record], key: Key, pod: PodIdentity) -> Key:
    """The key that a container's attachment is recorded under: its own, but for what was found."""
    if key in records:
        return key
    unknown = [one for one in records if one.is_unknown and one.ifname == key.ifname]
    if not unknown:
        return key
    names = host_ifnames(key, pod)
    return next((one for one in unknown if records[one].attachment.host_ifname in names), key)


def is_named_for_pod(record: Record) -> bool:
    """Whether the host end's name tells nothing of the container, as Calico's does not."""
    calicos = host_ifname(PROFILES["calico"], record.key, record.pod)
    return record.key.is_unknown and record.attachment.host_ifname == calicos


def _guarded(netfilter: NetlinkSocket) -> dict[str, list[IPAddress]]:
    """What ports may send with, by the port's name, where nft guards them."""
    found: dict[str, list[IPAddress]] = {}
    for family in _FAMILIES:
        for data in nft_elements.read(netfilter, family, _TABLE, GUARDED):
            found.setdefault(_ifname(data), [])
        for version, name in BINDINGS.items():
            size = 4 if version == 4 else 16
            for data in nft_elements.read(netfilter, family, _TABLE, name):
                ip = ip_address(data[-size:])
                # Everybody may send with these.
                if not ip.is_link_local and not ip.is_unspecified:
                    found.setdefault(_ifname(data), []).append(ip)
    return found


def _at_ports(sock: NetlinkSocket) -> dict[str, list[IPAddress]]:
    """The same, where programs guard ports."""
    ports = guards.guarded(sock)
    found = {}
    for link in links(sock).values() if ports else ():
        value = guards.value_of(ports[link.index].name) if link.index in ports else None
        if value is not None:
            found[link.name] = list(value.ips)
    return found


def _ifname(data: bytes) -> str:
    return data[:_IFNAME_BYTES].rstrip(b"\0").decode(errors="replace")


def _first_ones(ips: Collection[IPAddress]) -> list[IPAddress]:
    """One a family: what came after it, the pod has given itself."""
    found: dict[int, IPAddress] = {}
    for ip in ips:
        found.setdefault(ip.version, ip)
    return list(found.values())


def _seen(ip: IPAddress, on_link: Collection[IPInterface]) -> tuple[IPInterface, IPAddress]:
    """As the pod sees it, and its gateway."""
    for bridge in on_link:
        if ip.version == bridge.version and ip in bridge.network:
            return ip_interface((ip, bridge.network.prefixlen)), bridge.ip
    return ip_interface((ip, ip.max_prefixlen)), routed.gateway(ip.version)
