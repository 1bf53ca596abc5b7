"""Leases as etcd keeps them in Flannel's layout: keys and values, written and read. Pure.

    PREFIX/subnets/10.5.34.0-24                        the key of a subnet
    PREFIX/subnets/10.5.34.0-24&fd00:5:34::-64         of one of each family
    {"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",
     "BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}

Fields that Flannel does not know, and passes over, begin with `Podwire`. A network of IPv6 alone
has `0.0.0.0-0` in place of the IPv4 subnet, which is what flanneld's own first node writes there.
Where nodes have no one subnet (blocks are claimed as needed), a lease is at PREFIX/nodes/NAME with
its subnets in the value; flanneld does not look there.

Source: pkg/subnet/subnet.go, pkg/lease/lease.go, pkg/backend/vxlan of Flannel.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from podwire.cluster.nodes import VXLAN_BACKENDS
from podwire.cluster.published import parse_endpoint, parse_public_key, parse_vtep_mac
from podwire.decoding import decode as decode_json
from podwire.errors import InputError
from podwire.model.cluster import Endpoint, Lease
from podwire.model.state import IPNetwork, format_mac

_KEY = re.compile(r"(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([0-9a-f:]+)-(\d+))?", re.ASCII)
_NO_SUBNET = "0.0.0.0-0"
_NO_ADDRESS = "0.0.0.0"  # noqa: S104  nothing listens there
_NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", re.ASCII)
#: flanneld's udp backend publishes no type.
_UNNAMED_BACKEND = "udp"


class _Vtep(msgspec.Struct):
    VNI: int = 0
    VtepMAC: str = ""


class _Value(msgspec.Struct):
    """A value as flanneld writes it, and what we add."""

    PublicIP: str = _NO_ADDRESS
    PublicIPv6: str | None = None
    BackendType: str = ""
    BackendData: dict[str, Any] | None = None
    BackendV6Data: dict[str, Any] | None = None
    PodwireNode: str = ""
    PodwirePublicKey: str = ""
    PodwireSubnets: list[str] | None = None


class StoredLease(msgspec.Struct, frozen=True, gc=False):
    """A lease, and the name of the node that has it: empty for one of flanneld's."""

    node: str
    lease: Lease


def format_subnets(subnets: Sequence[IPNetwork]) -> str:
    """The last part of the key of `subnets`, one a family at most."""
    four = next((_dashed(one) for one in subnets if one.version == 4), _NO_SUBNET)
    six = next((_dashed(one) for one in subnets if one.version == 6), None)
    return four if six is None else f"{four}&{six}"


def parse_subnets(name: str) -> tuple[IPNetwork, ...]:
    """The subnets, IPv4 first, that a key's last part names. Raises InputError."""
    match = _KEY.fullmatch(name)
    if match is None:
        raise InputError("not the name of a subnet, such as 10.5.34.0-24", field=name)
    four, four_len, six, six_len = match.groups()
    found: list[IPNetwork] = []
    try:
        if f"{four}-{four_len}" != _NO_SUBNET or six is None:
            found.append(ipaddress.IPv4Network(f"{four}/{four_len}"))
        if six is not None:
            found.append(ipaddress.IPv6Network(f"{six}/{six_len}"))
    except ValueError as error:
        raise InputError(str(error), field=name) from None
    return tuple(found)


def encode(lease: Lease, node: str, *, with_subnets: bool = False) -> bytes:
    """What `node` publishes about `lease`; its subnets too where its key does not name them."""
    four, six = lease.endpoint(4), lease.endpoint(6)
    value: dict[str, Any] = {
        "PublicIP": str(four.ip) if four is not None else _NO_ADDRESS,
        "PublicIPv6": str(six.ip) if six is not None else None,
    }
    if lease.backend != _UNNAMED_BACKEND:
        value["BackendType"] = lease.backend
    for name, endpoint in (("BackendData", four), ("BackendV6Data", six)):
        if endpoint is not None and endpoint.vtep_mac is not None:
            value[name] = {"VNI": lease.vni, "VtepMAC": format_mac(endpoint.vtep_mac)}
    if lease.public_key is not None:
        value["PodwirePublicKey"] = base64.b64encode(lease.public_key).decode()
    if node:
        value["PodwireNode"] = node
    if with_subnets:
        value["PodwireSubnets"] = [str(one) for one in lease.subnets]
    return msgspec.json.encode(value)


def decode(data: bytes, subnets: Sequence[IPNetwork] | None) -> StoredLease:
    """The lease in a value; `subnets` are those of its key, None where the value has them.

    Raises InputError that names the field.
    """
    value = decode_json(
        data,
        _Value,
        field="value",
        expected='a lease such as {"PublicIP": "192.168.64.3", "BackendType": "vxlan", …}',
        remedy="delete the key if no node has that lease",
    )
    if value.PodwireNode and not _NODE_NAME.fullmatch(value.PodwireNode):
        raise InputError(f"{value.PodwireNode!r} is not a node's name", field="PodwireNode")
    backend = value.BackendType or _UNNAMED_BACKEND
    vni, endpoints = 0, []
    for version, address, found in (
        (4, value.PublicIP, value.BackendData),
        (6, value.PublicIPv6, value.BackendV6Data),
    ):
        field = "PublicIP" if version == 4 else "PublicIPv6"
        if address in (None, "", _NO_ADDRESS, "::"):
            continue
        ip, mac = parse_endpoint(address, version, field), None
        if backend in VXLAN_BACKENDS:
            field = "BackendData" if version == 4 else "BackendV6Data"
            vtep = _vtep(found, field)
            vni, mac = vtep.VNI, parse_vtep_mac(vtep.VtepMAC, f"{field}.VtepMAC")
        endpoints.append(Endpoint(ip, mac))
    if not endpoints:
        raise InputError("there is no address", field="PublicIP")
    key = value.PodwirePublicKey
    second = endpoints[1] if len(endpoints) > 1 else None
    lease = Lease(
        subnets=tuple(subnets) if subnets is not None else _subnets(value.PodwireSubnets),
        backend=backend,
        public_ip=endpoints[0].ip,
        vni=vni,
        vtep_mac=endpoints[0].vtep_mac,
        public_ip6=second.ip if second is not None else None,
        vtep_mac6=second.vtep_mac if second is not None else None,
        public_key=parse_public_key(key, "PodwirePublicKey") if key else None,
    )
    return StoredLease(value.PodwireNode, lease)


def _dashed(subnet: IPNetwork) -> str:
    return f"{subnet.network_address}-{subnet.prefixlen}"


def _subnets(texts: list[str] | None) -> tuple[IPNetwork, ...]:
    try:
        return tuple(ipaddress.ip_network(text) for text in texts or ())
    except ValueError as error:
        raise InputError(str(error), field="PodwireSubnets") from None


def _vtep(found: dict[str, Any] | None, field: str) -> _Vtep:
    try:
        return msgspec.convert(found or {}, _Vtep)
    except msgspec.ValidationError as error:
        raise InputError(str(error), field=field) from None
