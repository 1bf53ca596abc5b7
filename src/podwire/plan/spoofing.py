"""Anti-spoofing: a pod sends with its own addresses only, and answers ARP and NDP for these only.

By a program at each pod's port where the kernel takes them (`PortGuard`), which costs a packet
least; else by nft:

    bridge wiring   table bridge podwire, prerouting: MAC and address of each frame that enters by
                    a pod's port, those inside ARP, and the target of neighbour advertisements
    routed wiring   table inet podwire, prerouting: the source address of each packet that enters
                    by a pod's link; its ARP and NDP reach nobody but the node, at input

Whose port it is and what may come out of it are, of either, kept under the pod's attachment. A pod
with `may_spoof` has none of it, and nothing of it is looked at. What is dropped is counted by
kind. Frames that are neither ARP nor IP are dropped too: a VLAN tag would hide an address. And no
pod is a router: a node without IPv6 of its own, and other pods on the bridge, would believe one
that says so, and send it all that they have for outside.

Every packet pays for nft's, so what is usual is asked first, in one look-up: on a bridge, whether
the address is the port's; of a routed pod, whether the way to the source is the link that the
packet came by, as strict reverse path filtering asks (RFC 3704, section 2.2). The kernel's own
(rp_filter) is cheaper still, but what a host sets for all of its links overrules it, and it tells
nobody whose packets it dropped. What comes from the underlay is passed by the group of its link.
Pure: values in, entries out.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from podwire.model.cluster import Attachment, NetworkConfig
from podwire.model.state import (
    LINK_GROUP,
    Entry,
    IPAddress,
    KeyPart,
    NftChain,
    NftCounter,
    NftElement,
    NftHook,
    NftOpenSet,
    NftRule,
    NftTable,
    PortGuard,
    Why,
    link_local,
)

_RAW = -300
#: In the bridge family, before everything that others usually have there.
_BRIDGE_FIRST = -300

GUARDED, BINDINGS, TARGETS = "guarded", {4: "bindings4", 6: "bindings6"}, "nd_targets"

SPOOFED_IP = NftCounter(name="spoofed_ip", meaning="packets from a pod with a source not its own")
SPOOFED_ARP = NftCounter(name="spoofed_arp", meaning="ARP from a pod about an address not its own")
SPOOFED_ND = NftCounter(
    name="spoofed_nd", meaning="neighbour advertisements from a pod for an address not its own"
)
SPOOFED_RA = NftCounter(
    name="spoofed_ra", meaning="router advertisements and redirects from a pod, which is no router"
)
OTHER_FRAMES = NftCounter(name="other_frames", meaning="frames from a pod, neither ARP nor IP")

_AS_ROUTER = (
    f'icmpv6 type {{ nd-router-advert, nd-redirect }} counter name "{SPOOFED_RA.name}" drop'
)

# Who asks whether an address is free sends from none (RFC 5227 and 4862); of IPv6, nobody sends
# anything else that way.
_NOBODY4, _NOBODY6 = IPv4Address(0), IPv6Address(0)
_OF_NOBODY = f'ip6 saddr {_NOBODY6} meta l4proto != ipv6-icmp counter name "{SPOOFED_IP.name}" drop'


def plan_bridge_table(config: NetworkConfig) -> tuple[NftTable, ...]:
    """The table that looks at what enters the bridge."""
    if not _by_nft(config) or config.fabric.wiring != "bridge":
        return ()
    why = _why(config)
    own = "iifname . ether saddr"
    # What other nodes' pods send comes by a port of its own.
    segment = (f'iifname "{config.vxlan_dev}" accept',) if config.fabric.is_one_segment else ()
    texts = (
        *segment,
        f"{own} . ip saddr @{BINDINGS[4]} accept",
        f"iifname != @{GUARDED} accept",
        f"{own} . arp saddr ip @{BINDINGS[4]} iifname . arp saddr ether . arp saddr ip"
        f" @{BINDINGS[4]} accept",
        f'ether type arp counter name "{SPOOFED_ARP.name}" drop',
        _AS_ROUTER,
        f"icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @{TARGETS}"
        f' counter name "{SPOOFED_ND.name}" drop',
        _OF_NOBODY,
        f"{own} . ip6 saddr @{BINDINGS[6]} accept",
        f'ether type {{ ip, ip6 }} counter name "{SPOOFED_IP.name}" drop',
        f'counter name "{OTHER_FRAMES.name}" drop',
    )
    chain = NftChain(
        name="from_pods",
        hook=NftHook(type="filter", hook="prerouting", priority=_BRIDGE_FIRST),
        rules=tuple(NftRule(text=text, why=why) for text in texts),
    )
    table = NftTable(
        name="podwire",
        family="bridge",
        open_sets=(
            NftOpenSet(name=GUARDED, type="ifname", why=why),
            NftOpenSet(name=BINDINGS[4], type="ifname . ether_addr . ipv4_addr", why=why),
            NftOpenSet(name=BINDINGS[6], type="ifname . ether_addr . ipv6_addr", why=why),
            NftOpenSet(name=TARGETS, type="ifname . @th,64,128", why=why),
        ),
        counters=(SPOOFED_IP, SPOOFED_ARP, SPOOFED_ND, SPOOFED_RA, OTHER_FRAMES),
        chains=(chain,),
        why=why,
    )
    return (table,)


def open_sets(config: NetworkConfig) -> tuple[NftOpenSet, ...]:
    """Of the inet table, for routed pods."""
    if not _at_ip(config):
        return ()
    why = _why(config)
    return (
        NftOpenSet(name=GUARDED, type="ifname", why=why),
        NftOpenSet(name=BINDINGS[4], type="ifname . ipv4_addr", why=why),
        NftOpenSet(name=BINDINGS[6], type="ifname . ipv6_addr", why=why),
    )


def counters(config: NetworkConfig) -> tuple[NftCounter, ...]:
    """Of the inet table."""
    return (SPOOFED_IP, SPOOFED_RA) if _at_ip(config) else ()


def plan_chains(config: NetworkConfig) -> tuple[NftChain, ...]:
    """Of the inet table."""
    if not _at_ip(config):
        return ()
    why = _why(config)
    strange = (
        # What the routes don't tell: link-local addresses, and a source of none.
        f"iifname . ip saddr @{BINDINGS[4]} accept",
        f"iifname @{GUARDED} {_OF_NOBODY}",
        f"iifname . ip6 saddr @{BINDINGS[6]} accept",
        f'iifname @{GUARDED} counter name "{SPOOFED_IP.name}" drop',
    )
    return (
        _chain("strange_source", strange, why),
        _chain(
            "from_pods",
            (f"iifgroup {LINK_GROUP} fib saddr . iif oif 0 goto strange_source",),
            why,
            hook="prerouting",
        ),
        # A router's messages are for the link that they are on, so no forwarded packet pays.
        _chain(
            "no_routers", (f"iifgroup {LINK_GROUP} iifname @{GUARDED} {_AS_ROUTER}",), why, "input"
        ),
    )


def _chain(name: str, texts: tuple[str, ...], why: Why, hook: str | None = None) -> NftChain:
    return NftChain(
        name=name,
        hook=NftHook(type="filter", hook=hook, priority=_RAW) if hook is not None else None,
        rules=tuple(NftRule(text=text, why=why) for text in texts),
    )


def plan_attachment(config: NetworkConfig, attachment: Attachment) -> tuple[Entry, ...]:
    """What may come out of a pod's port."""
    if not config.fabric.anti_spoofing or attachment.may_spoof:
        return ()
    port, mac = attachment.host_ifname, attachment.mac
    routed = config.fabric.wiring == "routed"
    pod = attachment.pod or attachment.container_id[:12]
    ips = [ip.ip for ip in attachment.ips]
    why = Why(f"Pod/{pod}", f"has {', '.join(map(str, ips))}")
    if config.guard == "ebpf":
        return (PortGuard(dev=port, mac=mac, ips=tuple(ips), frames=not routed, why=why),)
    family = "inet" if routed else "bridge"

    def element(name: str, *key: KeyPart) -> NftElement:
        return NftElement(set=name, key=(port, *key), why=why, family=family)

    sources: list[IPAddress] = [*ips, link_local(mac), _NOBODY6]
    entries = [element(GUARDED)]
    if routed:
        entries += [element(BINDINGS[ip.version], ip) for ip in sources]
        return tuple(entries)
    sources.append(_NOBODY4)
    entries += [element(BINDINGS[ip.version], mac, ip) for ip in sources]
    targets = (ip for ip in sources if ip.version == 6 and ip != _NOBODY6)
    entries += [element(TARGETS, ip) for ip in targets]
    return tuple(entries)


def counted_at_ports(config: NetworkConfig) -> tuple[NftCounter, ...]:
    """What the programs at the ports count, under the same names."""
    if not config.fabric.anti_spoofing or config.guard != "ebpf":
        return ()
    if config.fabric.wiring == "routed":
        return SPOOFED_IP, SPOOFED_RA, OTHER_FRAMES
    return SPOOFED_IP, SPOOFED_ARP, SPOOFED_ND, SPOOFED_RA, OTHER_FRAMES


def _by_nft(config: NetworkConfig) -> bool:
    return config.fabric.anti_spoofing and config.guard == "nftables"


def _at_ip(config: NetworkConfig) -> bool:
    return _by_nft(config) and config.fabric.wiring == "routed"


def _why(config: NetworkConfig) -> Why:
    return Why(f"Node/{config.node}", "lets its pods send with their own addresses only")
