"""One shape of a lab and another: what a change of the pod network makes of it, what differs.

Pure. What lives here: both. What a shape is, and its check, is `shape`'s; what a change means for
those who use the network, `consequences`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from podwire.errors import InputError
from podwire.lab.shape import Choice, Shape, check, choices, parse_networks
from podwire.model.fabric import Fabric
from podwire.plan import profiles

_AXES = {"ipam", "wiring", "transport"}
#: Fields of a fabric that nobody chooses.
_DERIVED = {"bridge", "port_prefix", "vxlan_dev", "vxlan_dev6", "udp_dev", "route_protocol"}


def changed(
    before: Shape, fabric: Mapping[str, Choice | None], network: str | None = None
) -> Shape:
    """A running lab's shape with other choices of a fabric.

    A profile stands for itself: the choices of before are given up. Without one, what was chosen
    stays but for what is now chosen otherwise. `network` is for an IPAM that the lab has not had:
    with one that it had, its nodes have subnets, or it has pools, for good.

    Raises InputError.
    """
    asked = given = choices(fabric)
    if "profile" not in given:
        old = before.resolved.profile
        named: dict[str, Choice] = {} if old == profiles.CUSTOM else {"profile": old}
        given = _by_name(before.fabric | named | given)
    networks = {**before.networks, before.resolved.ipam: tuple(map(str, before.network))}
    made = msgspec.structs.replace(before, fabric=given, networks=networks)
    if network is not None:
        ipam = made.resolved.ipam
        chosen = tuple(map(str, parse_networks(network)))
        if networks.setdefault(ipam, chosen) != chosen:
            raise InputError(
                f"the lab has {','.join(networks[ipam])} for {ipam}, which its nodes keep",
                field="network",
                remedy="leave --network away, or make another lab",
            )
    check(made)
    made.refuse_idle(asked)
    return made


def _by_name(chosen: dict[str, Choice]) -> dict[str, Choice]:
    """The same choices, by the profile's name where they come to one."""
    made = profiles.fabric(**chosen)  # type: ignore[arg-type]
    rest = {name: value for name, value in chosen.items() if name not in _AXES}
    for name in profiles.PROFILES:
        named = {**rest, "profile": name}
        try:
            same = profiles.fabric(**named)  # type: ignore[arg-type]
        except InputError:
            continue
        if same == msgspec.structs.replace(made, profile=name):
            return named
    return chosen


def differences(before: Shape, after: Shape) -> list[str]:
    """What two shapes differ in: a phrase each, `profile calico, not flannel-vxlan`."""
    old, new = before.resolved, after.resolved
    found = [
        (name.replace("_", "-"), getattr(old, name), getattr(new, name))
        for name in Fabric.__struct_fields__
        if name not in _DERIVED and getattr(old, name) != getattr(new, name)
    ]
    if found and found[0][0] == "profile" and new.profile != profiles.CUSTOM:
        # What else differs follows from it, but for what was chosen otherwise.
        own = profiles.PROFILES[new.profile]
        found = [found[0], *(one for one in found[1:] if one[2] != getattr(own, _field(one[0])))]
    networks = [",".join(map(str, one.network)) for one in (before, after)]
    found.append(("network", networks[0], networks[1]))
    for name in ("family", "underlay", "underlay_family", "store", "agent_options", "node_grace_s"):
        found.append((name.replace("_", "-"), getattr(before, name), getattr(after, name)))
    return [f"{name} {_word(new)}, not {_word(old)}" for name, old, new in found if old != new]


def _field(option: str) -> str:
    return option.replace("-", "_")


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(value) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)
