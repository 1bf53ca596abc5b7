"""What a kernel can hold: links, addresses, routes, neighbours, FDB entries, sysctls, nft objects.

Values only, frozen, without I/O. Planners return them, `podwire.kernel` reads, compares and applies
them. Each carries a `Why`: the object that asked for it and the reason in words. The why is shown
(`podwire plan`, `explain`, `trace`) and never compared; neither is anything that is None, which
means "as the kernel likes".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

import msgspec

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

#: Our routes carry this protocol number, so that they are told from everybody else's
#: (rtnetlink(7): values above 4 are free for routing daemons; 112 is unused in iproute2's table).
ROUTE_PROTOCOL = 112

#: Our links are in this device group (IFLA_GROUP), set in the same message that creates them, so
#: that not even a crash leaves a link whose owner is in doubt.
LINK_GROUP = 7077

#: Links of ours that are about to be deleted, all of this group in one go.
DOOMED_GROUP = 7078


#: The name of the nft table (family inet) that is ours.
NFT_TABLE = "podwire"

_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


class Why(msgspec.Struct, frozen=True):
    """`object` caused an entry (`Node/node2`), because of `reason` (`leases 10.244.2.0/24`)."""

    object: str
    reason: str

    def __str__(self) -> str:
        return f"{self.object} {self.reason}"


class Bridge(msgspec.Struct, frozen=True, tag="bridge"):
    """An Ethernet bridge without spanning tree.

    `multicast_snooping` off floods multicast to all ports, which takes no querier.
    """

    multicast_snooping: bool | None = None


class Vxlan(msgspec.Struct, frozen=True, tag="vxlan"):
    """A VXLAN tunnel end point (RFC 7348). `port` is UDP; `dev` the underlay link, by name.

    `gbp` carries the mark in the header (IFLA_VXLAN_GBP), where all ends have it.
    """

    vni: int
    port: int
    local: IPAddress
    dev: str
    learning: bool = False
    gbp: bool = False


class Tun(msgspec.Struct, frozen=True, tag="tun"):
    """A persistent TUN device of IP packets with virtio_net headers (linux/if_tun.h)."""


class Veth(msgspec.Struct, frozen=True, tag="veth"):
    """One end of a pair. The other end is `peer`, made in another namespace.

    `peer_gso_max_size`: the largest TCP super-packet that is made there, in bytes.
    """

    peer: str
    peer_mac: bytes
    peer_gso_max_size: int | None = None


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface. `mac` is 6 bytes.

    Of the bridge port that it is: `hairpin`; `isolated` (does not talk to other isolated ports);
    `neigh_suppress` (the bridge answers ARP and NDP for neighbours that it knows, instead of
    sending the question out there); `port_learning`. `link_local` gives it an IPv6 link-local
    address made of its MAC (EUI-64); our links have none otherwise.
    """

    name: str
    kind: Bridge | Vxlan | Veth | Tun
    why: Why
    mtu: int | None = None
    mac: bytes | None = None
    master: str | None = None
    hairpin: bool | None = None
    isolated: bool | None = None
    neigh_suppress: bool | None = None
    port_learning: bool | None = None
    promiscuous: bool | None = None
    link_local: bool = False
    alias: str = ""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """An address of a link, with its prefix length."""

    dev: str
    ip: IPInterface
    why: Why


class Route(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A unicast route of the main table. `onlink`: take `via` to be reachable on `dev`.

    `protocol` is what a person sees as `proto`.
    """

    dst: IPNetwork
    dev: str
    why: Why
    via: IPAddress | None = None
    src: IPAddress | None = None
    onlink: bool = False
    protocol: int = ROUTE_PROTOCOL


class Blackhole(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A route of the main table that drops what no more specific one takes."""

    dst: IPNetwork
    why: Why
    protocol: int = ROUTE_PROTOCOL


class Neighbor(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A permanent neighbour (ARP or NDP) entry: `ip` has `mac` on `dev`."""

    dev: str
    ip: IPAddress
    mac: bytes
    why: Why


class FdbEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A permanent forwarding entry of a VXLAN device: frames for `mac` go to the VTEP at `dst`.

    The MAC of zeros stands for every unknown one, for broadcast and for multicast, and may have
    many entries.
    """

    dev: str
    mac: bytes
    dst: IPAddress
    why: Why


class PortFdbEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A static forwarding entry of a bridge: frames for `mac` leave by its port `dev`."""

    dev: str
    mac: bytes
    why: Why


class Sysctl(msgspec.Struct, frozen=True, kw_only=True):
    """A key below /proc/sys with slashes (`net/ipv4/ip_forward`) and the value it must have."""

    key: str
    value: str
    why: Why


class NftRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule in nft(8) syntax, without its chain: `ip saddr @cluster4 … masquerade`."""

    text: str
    why: Why


class NftHook(msgspec.Struct, frozen=True, kw_only=True):
    """Where a base chain sits: its type (`nat`), its hook (`postrouting`), priority, policy."""

    type: str
    hook: str
    priority: int
    policy: str = "accept"


class NftChain(msgspec.Struct, frozen=True, kw_only=True):
    """A chain; without `hook` a regular one, which others jump to."""

    name: str
    rules: tuple[NftRule, ...]
    hook: NftHook | None = None


class NftSet(msgspec.Struct, frozen=True, kw_only=True):
    """A named set of `type` (`ipv4_addr`); elements are in nft's own canonical text."""

    name: str
    type: str
    elements: tuple[str, ...]
    why: Why
    flags: tuple[str, ...] = ()


class NftCounter(msgspec.Struct, frozen=True, kw_only=True):
    """A named counter, which rules refer to: `counter name "spoofed" drop`. `meaning` says in words
    what is counted (`packets with a source that is not the pod's`)."""

    name: str
    meaning: str


class NftTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table that is ours as a whole: what is in it and not here is removed.

    The elements of `open_sets` are not here: each is an `NftElement`, with a cause of its own.
    Counters keep their values when something else of the table changes.
    """

    name: str
    why: Why
    family: str = "inet"
    sets: tuple[NftSet, ...] = ()
    open_sets: tuple[NftOpenSet, ...] = ()
    counters: tuple[NftCounter, ...] = ()
    chains: tuple[NftChain, ...] = ()


class NftOpenSet(msgspec.Struct, frozen=True, kw_only=True):
    """A set whose elements come and go with their causes.

    `type` is `ifname`, `ether_addr`, `ipv4_addr`, `ipv6_addr` or `inet_service`, or several of them
    with ` . ` between. A part such as `@th,64,128` is what nft has no name for: so many bits of the
    payload (the set is declared with `typeof`), here the target of a neighbour advertisement.
    """

    name: str
    type: str
    why: Why


#: One part of a set element's key, as the set's type has it.
KeyPart = str | bytes | IPAddress | int


class NftElement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An element of an open set of the table `family` `table`: an interface's name, a MAC's six
    bytes, an address, a port; several where the set's type is a concatenation."""

    set: str
    key: tuple[KeyPart, ...]
    why: Why
    table: str = NFT_TABLE
    family: str = "inet"


class PortGuard(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A program at a pod's port `dev` drops what does not come from `ips`, or from the link-local
    address of `mac`. On a bridge whole `frames` are looked at: their MAC, ARP and neighbour
    discovery as well."""

    dev: str
    mac: bytes
    ips: tuple[IPAddress, ...]
    frames: bool
    why: Why


Entry = (
    Link
    | Address
    | Route
    | Blackhole
    | Neighbor
    | FdbEntry
    | PortFdbEntry
    | Sysctl
    | NftTable
    | NftElement
    | PortGuard
)


class Desired(msgspec.Struct, frozen=True):
    """What a namespace should hold, kept by the object that caused it.

    `by_cause` maps a cause (`Node/node2`) to its entries; the order within a cause is the order
    in which a person would type them.
    """

    by_cause: dict[str, tuple[Entry, ...]]

    def entries(self) -> Iterable[Entry]:
        for entries in self.by_cause.values():
            yield from entries


def within(subnet: IPNetwork, network: IPNetwork) -> bool:
    """Whether all of `subnet` is in `network`; never where they are of different families."""
    return subnet.version == network.version and subnet.subnet_of(network)  # type: ignore[arg-type]


def format_mac(mac: bytes) -> str:
    """`b"\\x0a\\x58…"` as `0a:58:…`."""
    return mac.hex(":")


def link_local(mac: bytes) -> IPv6Address:
    """The IPv6 link-local address that an interface makes of its MAC: the modified EUI-64 (RFC
    4291, appendix A)."""
    eui64 = bytes([mac[0] ^ 0x02]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + eui64)


def parse_mac(text: str) -> bytes:
    """Six bytes of `0a:58:0a:f4:01:02`. Raises ValueError on anything else."""
    if not _MAC.fullmatch(text):
        raise ValueError(f"{text!r} is not a MAC address (six hexadecimal pairs with colons)")
    return bytes.fromhex(text.replace(":", ""))


def parse_interface_mac(text: str) -> bytes:
    """The same of one that an interface can have: neither of a group nor zero."""
    mac = parse_mac(text)
    if mac[0] & 1 or not any(mac):
        raise ValueError(f"{text} is not the address of one interface")
    return mac
