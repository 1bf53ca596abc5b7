"""Profiles: points of the space of fabrics that have a name, and which other points make sense.

A profile keeps the devices' names and the numbers that users of that system know. Any part of one
may be chosen otherwise, as long as the parts fit: `fabric` refuses what does not, with the reason.
Pure: names in, a `Fabric` out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from ipaddress import ip_network
from typing import Any, NamedTuple, get_args

import msgspec

from podwire.errors import InputError
from podwire.model.fabric import Fabric, Ipam, Transport, Wiring
from podwire.model.state import IPNetwork

CUSTOM = "custom"

#: Calico's routes carry the number that iproute2 knows nobody else by (REFERENCE: `proto 80`).
_CALICO_PROTOCOL = 80

#: Of an interface's name, at most (IFNAMSIZ without its zero byte).
_NAME_LEN = 15

_FLANNEL = Fabric()
_CALICO = Fabric(
    profile="calico",
    ipam="blocks",
    wiring="routed",
    transport="direct",
    port_prefix="cali",
    vxlan_dev="vxlan.calico",
    vxlan_dev6="vxlan-v6.calico",
    vni=4096,
    vxlan_port=4789,
    route_protocol=_CALICO_PROTOCOL,
    # Room for VXLAN, also where none is used: nodes may be added behind a router.
    mtu=1450,
)
_WEAVE = Fabric(
    profile="weave",
    ipam="cluster-range",
    wiring="bridge",
    transport="l2-vxlan",
    bridge="weave",
    port_prefix="vethwepl",
    vxlan_dev="vxlan-6784",
    vxlan_dev6="vxlan-v6-6784",
    vni=6784,
    vxlan_port=6784,
    learning=True,
    mtu=1376,
)


def _variant(fabric: Fabric, profile: str, **changes: Any) -> Fabric:
    return msgspec.structs.replace(fabric, profile=profile, **changes)


PROFILES: Mapping[str, Fabric] = {
    one.profile: one
    for one in (
        _FLANNEL,
        _variant(_FLANNEL, "flannel-host-gw", transport="direct"),
        _variant(_FLANNEL, "flannel-udp", transport="udp"),
        _CALICO,
        _variant(_CALICO, "calico-vxlan", transport="vxlan"),
        _WEAVE,
    )
}

#: The pod networks of each system's own documentation, one a family.
_NETWORKS = {
    "node-subnet": ("10.244.0.0/16", "fd00:10:244::/48"),
    "blocks": ("172.31.0.0/16", "fd00:172:31::/48"),
    "cluster-range": ("10.32.0.0/12", "fd00:10:32::/64"),
}

#: What only VXLAN devices have.
_VXLANS = ("vni", "vxlan_port", "learning", "gbp")

_AXES: Mapping[str, tuple[str, ...]] = {
    "ipam": get_args(Ipam),
    "wiring": get_args(Wiring),
    "transport": get_args(Transport),
}


def fabric(
    profile: str | None = None,
    *,
    ipam: str | None = None,
    wiring: str | None = None,
    transport: str | None = None,
    **options: Any,
) -> Fabric:
    """The fabric that these names mean; what is None is the profile's.

    `options` are further fields of `Fabric`. Without a profile, one that the parts fit is looked
    for, for its devices' names. Raises InputError for an unknown name and for parts that don't fit.
    """
    axes = {"ipam": ipam, "wiring": wiring, "transport": transport}
    chosen = {axis: value for axis, value in axes.items() if value is not None}
    for axis, value in chosen.items():
        if value not in _AXES[axis]:
            raise InputError(
                f"{value!r} is none of {', '.join(_AXES[axis])}",
                field=axis,
                remedy=f"choose one of them with --{axis}",
            )
    base = _base(profile, chosen)
    given = {name: value for name, value in options.items() if value is not None}
    made = msgspec.structs.replace(base, **chosen, **_devices(base, given), **given)
    if any(getattr(made, axis) != getattr(base, axis) for axis in chosen):
        made = msgspec.structs.replace(made, profile=CUSTOM)
    if reason := senseless(made):
        raise InputError(
            f"{made.ipam} × {made.wiring} × {made.transport} makes no sense: {reason}",
            field="fabric",
            remedy=f"the profiles are {', '.join(PROFILES)}",
        )
    return made


def _base(profile: str | None, chosen: Mapping[str, str]) -> Fabric:
    if profile is not None:
        try:
            return PROFILES[profile]
        except KeyError:
            raise InputError(
                f"{profile!r} is none of {', '.join(PROFILES)}",
                field="profile",
                remedy="choose one of them, or the parts with --ipam, --wiring and --transport",
            ) from None
    fitting = [
        one
        for one in PROFILES.values()
        if all(getattr(one, axis) == value for axis, value in chosen.items())
    ]
    if fitting:
        return fitting[0]
    # No name for this point: the family of names that belongs to its IPAM.
    ipam = chosen.get("ipam", _FLANNEL.ipam)
    return next(one for one in PROFILES.values() if one.ipam == ipam)


def _devices(base: Fabric, given: Mapping[str, Any]) -> dict[str, str]:
    """Names of devices that are made of a number, which may be another one than the profile's.

    Raises InputError for one that leaves no room for the name.
    """
    if base.vxlan_dev.startswith("flannel.") and "vni" in given:
        vni = given["vni"]
        if len(f"flannel.{vni}") > _NAME_LEN:
            raise InputError(
                f"the device would be flannel.{vni}, and names have {_NAME_LEN} characters at most",
                field="vni",
                remedy=f"choose one up to {10 ** (_NAME_LEN - len('flannel.')) - 1}",
            )
        dev6 = f"flannel-v6.{vni}"
        if len(dev6) > _NAME_LEN:
            # Flannel's own name for it is one that the kernel refuses.
            dev6 = f"flan6.{vni}"
        return {"vxlan_dev": f"flannel.{vni}", "vxlan_dev6": dev6}
    if base.vxlan_dev.startswith("vxlan-") and "vxlan_port" in given:
        port = given["vxlan_port"]
        return {"vxlan_dev": f"vxlan-{port}", "vxlan_dev6": f"vxlan-v6-{port}"}
    return {}


def senseless(fabric: Fabric) -> str | None:
    """Why the parts of a fabric don't fit together; None where they do."""
    if fabric.ipam == "cluster-range" and fabric.transport != "l2-vxlan":
        return (
            "pods of cluster-range take the whole network to be on their own link, which only"
            " l2-vxlan makes true"
        )
    if fabric.transport == "l2-vxlan" and fabric.ipam != "cluster-range":
        return (
            f"l2-vxlan joins all pods on one link, and those of {fabric.ipam} would still go"
            " through their gateways; use cluster-range"
        )
    if fabric.transport == "l2-vxlan" and fabric.wiring != "bridge":
        return "l2-vxlan carries Ethernet frames, and routed pods send none to each other"
    if fabric.ipam == "blocks" and fabric.wiring == "bridge":
        return (
            "a bridge has one subnet with a gateway address, and a node's blocks come and go; use"
            " routed wiring, or node-subnet"
        )
    if fabric.cross_subnet and fabric.transport != "vxlan":
        return (
            f"cross-subnet is about when to encapsulate in vxlan, and the transport is"
            f" {fabric.transport}"
        )
    if fabric.encrypt and fabric.transport != "udp":
        return f"only the udp transport encrypts, and the transport is {fabric.transport}"
    if fabric.transport == "auto" and fabric.vxlan_port == fabric.udp_port:
        return f"VXLAN and the udp transport can't both have UDP port {fabric.udp_port}"
    return None


class Idle(NamedTuple):
    """An option that changes nothing: what it takes, and what there is."""

    name: str
    wanted: str
    is_now: str


def idle(fabric: Fabric, given: Mapping[str, Any], versions: Collection[int]) -> Iterator[Idle]:
    """What changes nothing in this fabric, whose pods have addresses of these IP versions.

    `given` are fields of `Fabric` and the agent's options `guard` and `probe_interval`, None what
    was left open. What is usually off may be said to be.
    """
    families = " and ".join(f"IPv{version}" for version in sorted(versions))
    for names, applies, wanted, is_now in (
        (_VXLANS, fabric.uses_vxlan, "a transport with VXLAN", fabric.transport),
        (("udp_port",), fabric.uses_udp, "the transport udp or auto", fabric.transport),
        (
            ("probe_interval",),
            fabric.transport == "auto",
            "the transport auto",
            fabric.transport,
        ),
        (("guard",), fabric.anti_spoofing, "anti-spoofing", "without it"),
        (("hairpin", "promiscuous"), fabric.wiring == "bridge", "the wiring bridge", fabric.wiring),
        (("block_len", "block_len6"), fabric.ipam == "blocks", "the IPAM blocks", fabric.ipam),
        (("block_len",), 4 in versions, "a pod network of IPv4", families),
        (("block_len6",), 6 in versions, "a pod network of IPv6", families),
    ):
        for name in () if applies else names:
            value, usual = given.get(name), getattr(_FLANNEL, name, None)
            if not (value is None or value is usual is False):
                yield Idle(name, wanted, is_now)


def refuse_idle(fabric: Fabric, given: Mapping[str, Any], versions: Collection[int]) -> None:
    """Raise InputError where an option that was given is `idle`."""
    for name, wanted, is_now in idle(fabric, given, versions):
        option = "block-size" if name.startswith("block_len") else name.replace("_", "-")
        raise InputError(
            f"{str(given[name]).lower()} changes nothing: it takes {wanted}, and this is {is_now}",
            field=option,
            remedy=f"leave that out, or choose {wanted}",
        )


def not_for_pods(network: IPNetwork) -> str | None:
    """Why no pod may have an address of this network; None where pods may."""
    special = {
        "loopback": network.is_loopback,
        "link-local": network.is_link_local,
        "multicast": network.is_multicast,
    }
    if network.prefixlen == 0:
        return "it is all addresses there are"
    return next((f"its addresses are {name}" for name, found in special.items() if found), None)


def default_network(fabric: Fabric, versions: tuple[int, ...] = (4,)) -> tuple[IPNetwork, ...]:
    """The pod network that a fabric has where none is given, for each of the IP versions."""
    ipv4, ipv6 = _NETWORKS[fabric.ipam]
    return tuple(ip_network({4: ipv4, 6: ipv6}[version]) for version in versions)
