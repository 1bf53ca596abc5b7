"""Leases in Flannel's layout on Kubernetes Node objects: read from peers, published for ourselves.

A node's subnets are its `spec.podCIDRs`; how to reach them stands in the annotations that flanneld
writes with `--kube-subnet-mgr`, so nodes of both read each other. What a node published wrongly
makes that node unreachable, never the reader fail: `node_from_object` says what it left out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from podwire.errors import InputError
from podwire.model.cluster import Lease, Node
from podwire.model.state import IPAddress, IPNetwork, format_mac, parse_mac

PREFIX = "flannel.alpha.coreos.com/"
MANAGED = PREFIX + "kube-subnet-manager"
BACKEND_TYPE = PREFIX + "backend-type"
BACKEND_DATA = PREFIX + "backend-data"
BACKEND_V6_DATA = PREFIX + "backend-v6-data"
PUBLIC_IP = PREFIX + "public-ip"
PUBLIC_IPV6 = PREFIX + "public-ipv6"
PUBLIC_IP_OVERWRITE = PREFIX + "public-ip-overwrite"
PUBLIC_IPV6_OVERWRITE = PREFIX + "public-ipv6-overwrite"


class _Metadata(msgspec.Struct, gc=False):
    name: str
    creationTimestamp: str | None = None  # noqa: N815  the API's own spelling
    annotations: dict[str, str] | None = None


class _Spec(msgspec.Struct, gc=False):
    podCIDR: str = ""  # noqa: N815
    podCIDRs: list[str] | None = None  # noqa: N815


class _NodeAddress(msgspec.Struct, gc=False):
    type: str = ""
    address: str = ""


class _Status(msgspec.Struct, gc=False):
    addresses: list[_NodeAddress] | None = None


class NodeObject(msgspec.Struct, gc=False):
    """A v1 Node, as far as the network is concerned; decoded straight from the API's JSON."""

    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)

    def annotation(self, key: str) -> str | None:
        return (self.metadata.annotations or {}).get(key)


class _Condition(msgspec.Struct, gc=False):
    type: str = ""
    status: str = ""


class _FullStatus(_Status, gc=False):
    conditions: list[_Condition] | None = None


class NodeWithConditions(NodeObject, gc=False):
    """A v1 Node with what its kubelet says of it, which changes with every heartbeat."""

    status: _FullStatus = msgspec.field(default_factory=_FullStatus)

    @property
    def ready(self) -> bool:
        conditions = self.status.conditions or []
        return any(one.type == "Ready" and one.status == "True" for one in conditions)


class _VxlanData(msgspec.Struct):
    VNI: int
    VtepMAC: str


def node_from_object(obj: NodeObject) -> tuple[Node, list[str]]:
    """The node, and one sentence for each thing of it that could not be understood."""
    problems: list[str] = []
    name = obj.metadata.name
    texts = obj.spec.podCIDRs or ([obj.spec.podCIDR] if obj.spec.podCIDR else [])
    cidrs = _each(texts, ipaddress.ip_network, "spec.podCIDRs", problems)
    internal = [one.address for one in obj.status.addresses or [] if one.type == "InternalIP"]
    ips = _each(internal, ipaddress.ip_address, "status.addresses", problems)
    lease = None
    if obj.annotation(MANAGED) == "true":
        try:
            lease = _lease(obj, tuple(cidrs))
        except InputError as error:
            problems.append(str(error))
    node = Node(
        name=name,
        pod_cidrs=tuple(cidrs),
        internal_ips=tuple(ips),
        lease=lease,
        created=obj.metadata.creationTimestamp or "",
    )
    return node, problems


def lease_annotations(lease: Lease) -> dict[str, str]:
    """What a node publishes about its lease."""
    data = "null"
    if lease.vtep_mac is not None:
        data = msgspec.json.encode(
            {"VNI": lease.vni, "VtepMAC": format_mac(lease.vtep_mac)}
        ).decode()
    return {
        MANAGED: "true",
        BACKEND_TYPE: lease.backend,
        BACKEND_DATA: data,
        PUBLIC_IP: str(lease.public_ip),
    }


def network_available(now: str) -> dict[str, str]:
    """The node condition that tells the scheduler that pods can be wired. `now` is RFC 3339."""
    return {
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "PodwireIsUp",
        "message": "Podwire is running on this node",
        "lastTransitionTime": now,
        "lastHeartbeatTime": now,
    }


def published_vtep_mac(obj: NodeObject) -> bytes | None:
    """The VTEP MAC that this node published before; peers already know it, so it is kept."""
    try:
        return _vtep_mac(_vxlan_data(obj))
    except InputError:
        return None


def public_ip_overwrite(obj: NodeObject) -> IPAddress | None:
    """The address that an administrator set for peers to use (a NAT in front of the node)."""
    text = obj.annotation(PUBLIC_IP_OVERWRITE)
    if not text:
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise InputError(
            f"{text!r} is not an IP address",
            field=f"metadata.annotations[{PUBLIC_IP_OVERWRITE}]",
            remedy="set it to the address that other nodes reach this one at, or remove it",
        ) from error


def _lease(obj: NodeObject, cidrs: tuple[IPNetwork, ...]) -> Lease:
    backend = obj.annotation(BACKEND_TYPE) or ""
    text = obj.annotation(PUBLIC_IP) or ""
    try:
        public_ip = ipaddress.ip_address(text)
    except ValueError:
        raise InputError(
            f"{text!r} is not an IP address", field=f"metadata.annotations[{PUBLIC_IP}]"
        ) from None
    if public_ip.is_multicast or public_ip.is_unspecified or public_ip.is_loopback:
        raise InputError(
            f"{public_ip} is not an address of one node", field=f"metadata.annotations[{PUBLIC_IP}]"
        )
    if backend != "vxlan":
        return Lease(subnets=cidrs, backend=backend, public_ip=public_ip)
    data = _vxlan_data(obj)
    return Lease(
        subnets=cidrs,
        backend=backend,
        public_ip=public_ip,
        vni=data.VNI,
        vtep_mac=_vtep_mac(data),
    )


def _vtep_mac(data: _VxlanData) -> bytes:
    """Raises InputError. The zero address in an FDB is every unknown one, so none may claim it."""
    field = f"metadata.annotations[{BACKEND_DATA}].VtepMAC"
    try:
        mac = parse_mac(data.VtepMAC)
    except ValueError as error:
        raise InputError(str(error), field=field) from error
    if mac[0] & 1 or not any(mac):
        raise InputError(f"{data.VtepMAC} is not the address of one interface", field=field)
    return mac


def _vxlan_data(obj: NodeObject) -> _VxlanData:
    text = obj.annotation(BACKEND_DATA) or ""
    try:
        return msgspec.json.decode(text, type=_VxlanData)
    except msgspec.DecodeError as error:
        raise InputError(
            f'{error}; expected {{"VNI": number, "VtepMAC": "…"}}',
            field=f"metadata.annotations[{BACKEND_DATA}]",
        ) from error


def _each(texts: Sequence[str], parse: Any, field: str, problems: list[str]) -> list[Any]:
    found = []
    for number, text in enumerate(texts):
        try:
            found.append(parse(text))
        except ValueError as error:
            problems.append(f"{field}[{number}]: {error}")
    return found


def differs(obj: NodeObject, wanted: Mapping[str, str]) -> dict[str, str]:
    """Those of `wanted` that the object's annotations do not have yet."""
    return {key: value for key, value in wanted.items() if obj.annotation(key) != value}
