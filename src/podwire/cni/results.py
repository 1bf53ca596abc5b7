"""The result of ADD, in the shape of each version of the specification. No I/O.

0.3.1 and 0.4.0 have `version` in each entry of `ips`; 1.0.0 dropped it; 1.1.0 adds `mtu` to
interfaces. `interfaces` are what the node holds, the bridge where there is one and the host's end
of the veth pair, and the pod's end (the one with a `sandbox`), as the reference plugins `bridge`
and `ptp` list them; `ips` point at the pod's end.

In a chain where another plugin comes first, its result is passed on entry by entry, whatever is in
there, and ours is appended: our interfaces after its, our `interface` indexes counted from there.
Its `dns` stays unless it said nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_interface
from typing import Any

import msgspec

from podwire.cni.types import Dns, NetConf, PrevResult, at_least
from podwire.model.cluster import Attachment
from podwire.model.state import Link, Route, format_mac

#: RT_SCOPE_LINK (linux/rtnetlink.h): the destination is on the link itself.
_SCOPE_LINK = 253


def add_result(
    version: str,
    conf: NetConf,
    attachment: Attachment,
    *,
    node: Sequence[Link],
    routes: Sequence[Route],
) -> bytes:
    """The JSON that answers ADD. `node` are the links that the node holds."""
    interfaces: list[dict[str, Any]] = [
        *(
            {"name": link.name, "mac": format_mac(link.mac)} if link.mac else {"name": link.name}
            for link in node
        ),
        {
            "name": attachment.ifname,
            "mac": format_mac(attachment.mac),
            "sandbox": attachment.netns,
        },
    ]
    if at_least(version, "1.1.0"):
        for interface in interfaces:
            interface["mtu"] = attachment.mtu
    prev = conf.prev_result or PrevResult()
    prev_interfaces = prev.interfaces or []
    pod_index = len(prev_interfaces) + len(interfaces) - 1
    ips: list[dict[str, Any]] = [
        {"address": str(ip), "gateway": str(via), "interface": pod_index}
        for ip, via in zip(attachment.ips, attachment.gateways, strict=True)
    ]
    all_ips = [*(prev.ips or []), *ips]
    if not at_least(version, "1.0.0"):
        all_ips = [{"version": _family(entry), **entry} for entry in all_ips]
    dns = prev.dns if prev.dns not in (None, Dns()) else conf.dns
    return msgspec.json.encode(
        {
            "cniVersion": version,
            "interfaces": [*prev_interfaces, *interfaces],
            "ips": all_ips,
            "routes": [
                *(prev.routes or []),
                *(_route(version, route) for route in routes),
            ],
            "dns": dns or {},
        }
    )


def disagreements(prev: PrevResult, attachment: Attachment) -> list[str]:
    """What the result that CHECK is given lacks of `attachment`, one sentence each.

    Later plugins of the chain may have added to it and changed routes.
    """
    faults = []
    index = next(
        (
            number
            for number, interface in enumerate(prev.interfaces or [])
            if interface.get("name") == attachment.ifname and interface.get("sandbox")
        ),
        None,
    )
    if index is None:
        faults.append(f"prevResult has no interface {attachment.ifname} in a sandbox")
    listed = {entry.get("address") for entry in prev.ips or []}
    faults += [
        f"prevResult does not list the address {ip} that {attachment.ifname} holds"
        for ip in attachment.ips
        if str(ip) not in listed
    ]
    return faults


def names_interface(prev: PrevResult, ifname: str) -> bool:
    """Whether an earlier plugin of the chain has made `ifname` in the sandbox."""
    return any(
        interface.get("name") == ifname and interface.get("sandbox")
        for interface in prev.interfaces or []
    )


def _route(version: str, route: Route) -> dict[str, Any]:
    if route.via is not None:
        return {"dst": str(route.dst), "gw": str(route.via)}
    on_link = {"dst": str(route.dst)}
    return {**on_link, "scope": _SCOPE_LINK} if at_least(version, "1.1.0") else on_link


def _family(entry: dict[str, Any]) -> str:
    try:
        return str(ip_interface(entry.get("address", "")).version)
    except ValueError:
        return "4"
