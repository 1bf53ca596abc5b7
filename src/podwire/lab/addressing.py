"""Where a lab's nodes are on the underlay: its segments, and each node's addresses and MAC.

Pure: a layout and a node's number in, addresses out. Making them real is `underlay`'s.

    l2       one segment      172.18.0.0/16  fd00:172:18::/64    router .1   node N at .(10 + N)
    routed   segments 1, 2    172.18.S.0/24  fd00:172:18:S::/64  router .1   nodes by turns

In IPv6 the last group shows the same decimal digits: node 1 is fd00:172:18::11.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Literal, TypeAlias

import msgspec

from podwire.errors import InputError
from podwire.model.state import IPAddress, IPInterface, IPNetwork

Layout: TypeAlias = Literal["l2", "routed"]

#: All that an underlay of any layout uses, one a family; no pod network may overlap it.
RESERVED: tuple[IPNetwork, ...] = (ip_network("172.18.0.0/16"), ip_network("fd00:172:18::/48"))


class Segment(msgspec.Struct, frozen=True):
    """One link of the underlay: its bridge, and the router's addresses there, IPv4 first."""

    bridge: str
    mac: str
    routers: tuple[IPInterface, ...]

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        return tuple(router.network for router in self.routers)


def segments(layout: Layout, versions: tuple[int, ...]) -> tuple[Segment, ...]:
    """The links that the underlay consists of."""
    if layout == "l2":
        return (_segment("underlay", 0, 16, versions),)
    return tuple(_segment(f"underlay{number}", number, 24, versions) for number in (1, 2))


def segment(layout: Layout, versions: tuple[int, ...], index: int) -> Segment:
    """The link that the node of this index is on; nodes take turns."""
    links = segments(layout, versions)
    return links[(index - 1) % len(links)]


def addresses(layout: Layout, versions: tuple[int, ...], index: int) -> tuple[IPInterface, ...]:
    """A node's addresses with the prefix length of its link, one a family, IPv4 first."""
    return tuple(_at(network, 10 + index) for network in segment(layout, versions, index).networks)


def mac(layout: Layout, index: int) -> str:
    """MAC of a node's eth0: locally administered, its IPv4 address in the last four bytes."""
    return _mac(addresses(layout, (4,), index)[0].ip)


def readdressed(
    layout: Layout, versions: tuple[int, ...], index: int, given: tuple[str, ...]
) -> tuple[IPInterface, ...]:
    """A node's addresses with those `given` instead of its own of the same family.

    Raises InputError for one that the node cannot have on its link, and for two of one family.
    """
    link = segment(layout, versions, index)
    found = {one.version: one for one in addresses(layout, versions, index)}
    new: dict[Literal[4, 6], IPInterface] = {}
    for text in given:
        try:
            ip = ip_address(text)
        except ValueError as error:
            raise InputError(
                str(error), field="address", remedy="give an address such as 172.18.0.99"
            ) from error
        network = next((one for one in link.networks if ip in one), None)
        if network is None:
            raise InputError(
                f"{ip} is not on the node's link",
                field="address",
                remedy=f"choose one in {' or '.join(map(str, link.networks))}",
            )
        routers = {router.ip for router in link.routers}
        if ip in routers | {network.network_address, network.broadcast_address}:
            raise InputError(f"{ip} is no node's to have", field="address")
        if ip.version in new:
            raise InputError(f"{ip} is a second one of IPv{ip.version}", field="address")
        new[ip.version] = ip_interface(f"{ip}/{network.prefixlen}")
    found |= new
    return tuple(found[version] for version in sorted(found))


def _segment(bridge: str, number: int, ipv4_length: int, versions: tuple[int, ...]) -> Segment:
    tail = f":{number}" if number else ""
    by_version = {
        4: ip_network(f"172.18.{number}.0/{ipv4_length}"),
        6: ip_network(f"fd00:172:18{tail}::/64"),
    }
    routers = tuple(_at(by_version[version], 1) for version in versions)
    return Segment(bridge, _mac(ip_address(f"172.18.{number}.1")), routers)


def _at(network: IPNetwork, number: int) -> IPInterface:
    """The host of this number, in IPv6 with the decimal digits taken for hexadecimal ones."""
    offset = number if network.version == 4 else int(str(number), 16)
    return ip_interface(f"{network.network_address + offset}/{network.prefixlen}")


def _mac(ip: IPAddress) -> str:
    return "02:00:" + ":".join(f"{byte:02x}" for byte in ip.packed)
