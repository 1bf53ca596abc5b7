"""Leases in Flannel's layout on Kubernetes Node objects: read from peers, published for ourselves.

A node's subnets are its `spec.podCIDRs`; how to reach them stands in the annotations that flanneld
writes with `--kube-subnet-mgr`, so nodes of both read each other. What Flannel has no words for is
in annotations of our own: the subnets where podCIDRs are not used, and the key of the UDP tunnel.
What a node published wrongly makes that node unreachable, never the reader fail:
`node_from_object` says what it left out.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from podwire.cluster.published import parse_endpoint, parse_public_key, parse_vtep_mac
from podwire.decoding import decode
from podwire.errors import InputError
from podwire.model.cluster import Endpoint, Lease, Node
from podwire.model.state import IPAddress, IPNetwork, format_mac

PREFIX = "flannel.alpha.coreos.com/"
MANAGED = PREFIX + "kube-subnet-manager"
BACKEND_TYPE = PREFIX + "backend-type"
BACKEND_DATA = PREFIX + "backend-data"
BACKEND_V6_DATA = PREFIX + "backend-v6-data"
PUBLIC_IP = PREFIX + "public-ip"
PUBLIC_IPV6 = PREFIX + "public-ipv6"
PUBLIC_IP_OVERWRITE = PREFIX + "public-ip-overwrite"
PUBLIC_IPV6_OVERWRITE = PREFIX + "public-ipv6-overwrite"

OUR_PREFIX = "podwire.io/"
#: A node's blocks and borrowed addresses, which its podCIDRs are not.
SUBNETS = OUR_PREFIX + "subnets"
#: Its parts of the one big range that all pods are in; nobody needs routes to them.
RANGES = OUR_PREFIX + "ranges"
PUBLIC_KEY = OUR_PREFIX + "public-key"

#: All that a lease is published in: those that `lease_annotations` has not must not be there.
LEASE_KEYS = (
    *(MANAGED, BACKEND_TYPE, BACKEND_DATA, BACKEND_V6_DATA, PUBLIC_IP, PUBLIC_IPV6),
    *(SUBNETS, RANGES, PUBLIC_KEY),
)

#: By the IP version of the underlay: where the address stands, its overwrite, and the VTEP.
_ENDPOINT_KEYS = {
    4: (PUBLIC_IP, PUBLIC_IP_OVERWRITE, BACKEND_DATA),
    6: (PUBLIC_IPV6, PUBLIC_IPV6_OVERWRITE, BACKEND_V6_DATA),
}
#: What Flannel publishes as the address of a family that a node does not have.
_NONE = ("", "0.0.0.0", "::")  # noqa: S104  nothing listens there

#: Backends whose nodes have a VTEP.
VXLAN_BACKENDS = ("vxlan", "l2-vxlan", "auto")
_RANGES_BACKEND = "l2-vxlan"
#: flanneld's udp backend publishes no type.
_UNNAMED_BACKEND = "udp"


class _Metadata(msgspec.Struct, gc=False):
    name: str
    creationTimestamp: str | None = None  # noqa: N815  the API's own spelling
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None


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


def lease_annotations(lease: Lease, pod_cidrs: Sequence[IPNetwork] | None = None) -> dict[str, str]:
    """What a node publishes about its lease; `pod_cidrs` are those of its own Node object, where
    the lease may have other subnets."""
    found = {MANAGED: "true", BACKEND_TYPE: lease.backend}
    for endpoint in lease.endpoints:
        address, _, data = _ENDPOINT_KEYS[endpoint.ip.version]
        found[address] = str(endpoint.ip)
        found[data] = "null"
        if endpoint.vtep_mac is not None:
            vtep = {"VNI": lease.vni, "VtepMAC": format_mac(endpoint.vtep_mac)}
            found[data] = msgspec.json.encode(vtep).decode()
    if pod_cidrs is not None and tuple(pod_cidrs) != lease.subnets:
        key = RANGES if lease.backend == _RANGES_BACKEND else SUBNETS
        found[key] = ",".join(map(str, lease.subnets))
    if lease.public_key is not None:
        found[PUBLIC_KEY] = base64.b64encode(lease.public_key).decode()
    return found


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


def public_ip_overwrites(obj: NodeObject) -> tuple[IPAddress, ...]:
    """The addresses that an administrator set for peers to use (a NAT in front of the node)."""
    found = (_public_ip_overwrite(obj, version) for version in _ENDPOINT_KEYS)
    return tuple(ip for ip in found if ip is not None)


def _public_ip_overwrite(obj: NodeObject, version: int) -> IPAddress | None:
    key = _ENDPOINT_KEYS[version][1]
    text = obj.annotation(key)
    if not text:
        return None
    return parse_endpoint(
        text,
        version,
        _field(key),
        remedy="set it to the address that other nodes reach this one at, or remove it",
    )


def _lease(obj: NodeObject, cidrs: tuple[IPNetwork, ...]) -> Lease:
    backend = obj.annotation(BACKEND_TYPE) or _UNNAMED_BACKEND
    vni, endpoints = 0, []
    for version, (key, _, data_key) in _ENDPOINT_KEYS.items():
        text = obj.annotation(key) or ""
        if text in _NONE:
            continue
        ip, mac = parse_endpoint(text, version, _field(key)), None
        if backend in VXLAN_BACKENDS:
            data = _vxlan_data(obj, data_key)
            vni, mac = data.VNI, _vtep_mac(data, data_key)
        endpoints.append(Endpoint(ip, mac))
    if not endpoints:
        text = obj.annotation(PUBLIC_IP) or ""
        raise InputError(f"{text!r} is not an IP address", field=_field(PUBLIC_IP))
    first, second = endpoints[0], endpoints[1] if len(endpoints) > 1 else None
    return Lease(
        subnets=_listed(obj, cidrs),
        backend=backend,
        public_ip=first.ip,
        vni=vni,
        vtep_mac=first.vtep_mac,
        public_ip6=second.ip if second is not None else None,
        vtep_mac6=second.vtep_mac if second is not None else None,
        public_key=_public_key(obj),
    )


def _listed(obj: NodeObject, cidrs: tuple[IPNetwork, ...]) -> tuple[IPNetwork, ...]:
    """The subnets of a lease, which are `cidrs` where nothing else is said. Raises InputError."""
    for key in (SUBNETS, RANGES):
        text = obj.annotation(key)
        if text is None:
            continue
        problems: list[str] = []
        texts = text.split(",") if text else ()
        found = _each(texts, ipaddress.ip_network, _field(key), problems)
        if problems:
            raise InputError(problems[0].partition(": ")[2], field=_field(key))
        return tuple(found)
    return cidrs


def _public_key(obj: NodeObject) -> bytes | None:
    text = obj.annotation(PUBLIC_KEY)
    return parse_public_key(text, _field(PUBLIC_KEY)) if text is not None else None


def _field(key: str) -> str:
    return f"metadata.annotations[{key}]"


def _vtep_mac(data: _VxlanData, key: str) -> bytes:
    return parse_vtep_mac(data.VtepMAC, f"{_field(key)}.VtepMAC")


def _vxlan_data(obj: NodeObject, key: str) -> _VxlanData:
    return decode(
        obj.annotation(key) or "",
        _VxlanData,
        field=_field(key),
        expected='{"VNI": number, "VtepMAC": "…"}',
        remedy="remove the annotation: the agent of that node writes it again",
    )


def _each(texts: Sequence[str], parse: Any, field: str, problems: list[str]) -> list[Any]:
    found = []
    for number, text in enumerate(texts):
        try:
            found.append(parse(text))
        except ValueError as error:
            problems.append(f"{field}[{number}]: {error}")
    return found


def differs(obj: NodeObject, wanted: Mapping[str, str]) -> dict[str, str | None]:
    """What has to be patched so that the object has the lease `wanted`, and of no other one
    anything: None for what has to go."""
    return {key: wanted.get(key) for key in LEASE_KEYS if obj.annotation(key) != wanted.get(key)}
