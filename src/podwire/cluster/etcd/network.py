"""Flannel's network configuration: the document at PREFIX/config, its defaults and its rules.

Pure: bytes in, values out. Field names are taken in any case, as flanneld does, since people write
`Directrouting` as well. What flanneld refuses is refused here, with the field's name, and what it
lets pass although nothing could work (an end before the beginning).

Source: pkg/subnet/config.go of Flannel; Documentation/configuration.md and backends.md.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from podwire.cluster.nodes import VXLAN_BACKENDS
from podwire.cluster.source import BackendOptions, StoredNetwork
from podwire.decoding import decode
from podwire.errors import InputError
from podwire.model.state import IPAddress, IPNetwork, within
from podwire.plan.profiles import not_for_pods
from podwire.plan.transport import vxlan

T = TypeVar("T")
Version: TypeAlias = Literal[4, 6]

#: What flanneld does where the document has no Backend.
_DEFAULT_BACKEND = "udp"
#: By IP version: what fields begin with, the prefix length that is given out where the network
#: allows, and the longest that still has addresses for a bridge and a pod.
_FIELDS = {4: ("", 24, 30), 6: ("IPv6", 64, 126)}
_MAX_VNI = (1 << 24) - 1


class SubnetRange(msgspec.Struct, frozen=True):
    """What is leased of one family: subnets of length `subnet_len` from `first` to `last`, base
    addresses both, within `network`."""

    network: IPNetwork
    subnet_len: int
    first: IPAddress
    last: IPAddress

    @property
    def version(self) -> int:
        return self.network.version

    def allows(self, subnet: IPNetwork) -> bool:
        """Whether `subnet` is one that may be leased."""
        return (
            subnet.version == self.network.version
            and subnet.prefixlen == self.subnet_len
            and int(self.first) <= int(subnet.network_address) <= int(self.last)
        )


class FlannelConfig(msgspec.Struct, frozen=True):
    """The configuration of a network: what is leased, IPv4 first, and how packets travel."""

    ranges: tuple[SubnetRange, ...]
    backend: BackendOptions

    def allows(self, subnets: Sequence[IPNetwork]) -> bool:
        """Whether these are what a node may have: one of each range."""
        return len(subnets) == len(self.ranges) and all(
            any(wanted.allows(one) for one in subnets) for wanted in self.ranges
        )

    def counts(self, subnet: IPNetwork) -> bool:
        """Whether a lease of `subnet` takes anything from anybody: of whatever length, as one from
        before the configuration was changed may have, it is inside of what is leased here."""
        return any(within(subnet, one.network) for one in self.ranges)

    @property
    def stored(self) -> StoredNetwork:
        """What an agent has to know of it."""
        return StoredNetwork(tuple(one.network for one in self.ranges), self.backend)


def parse_config(document: bytes, key: str) -> FlannelConfig:
    """The configuration in `document`, of that key. Raises InputError."""
    fields = _Fields(document, key)
    ranges = []
    if fields.get("EnableIPv4", bool, True):
        ranges.append(_range(fields, 4))
    if fields.get("EnableIPv6", bool, False):
        ranges.append(_range(fields, 6))
    if not ranges:
        raise fields.wrong("EnableIPv4", "neither IPv4 nor IPv6 is enabled")
    return FlannelConfig(tuple(ranges), _backend(fields, ranges[0].network.version))


class _Fields:
    """A JSON object's fields by name in any case, and errors that name them."""

    def __init__(self, document: bytes | dict[str, Any], key: str) -> None:
        self._key = key
        if isinstance(document, bytes):
            document = decode(
                document,
                dict[str, Any],
                field=key,
                expected="a JSON object",
                remedy=f"""e.g. etcdctl put {key} '{{"Network": "10.5.0.0/16"}}'""",
            )
        self._values = {name.lower(): value for name, value in document.items()}

    def get(self, name: str, kind: type[T], default: T) -> T:
        """The field as `kind`; `default` where it is missing or null. Raises InputError."""
        value = self._values.get(name.lower())
        if value is None:
            return default
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise self.wrong(name, str(error)) from None

    def object(self, name: str) -> _Fields | None:
        value: dict[str, Any] = self.get(name, dict[str, Any], {})
        if self._values.get(name.lower()) is None:
            return None
        return _Fields(value, f"{self._key}: {name}")

    def wrong(self, name: str, message: str, remedy: str | None = None) -> InputError:
        return InputError(message, field=f"{self._key}: {name}", remedy=remedy)


def _range(fields: _Fields, version: Version) -> SubnetRange:
    prefix, usual_len, longest = _FIELDS[version]
    network = _network(fields, f"{prefix}Network", version)
    name = f"{prefix}SubnetLen"
    subnet_len = fields.get(name, int, 0)
    if subnet_len == 0:
        # At least four subnets: the first is never given out, and one alone is no network.
        subnet_len = usual_len if network.prefixlen <= usual_len - 2 else network.prefixlen + 2
        if subnet_len > longest:
            shortest = f"/{longest - 2}"
            raise fields.wrong(f"{prefix}Network", f"{network} is too small; at most {shortest}")
    if subnet_len > longest:
        raise fields.wrong(name, f"{subnet_len} is too long; at most {longest}")
    if subnet_len < network.prefixlen + 2:
        raise fields.wrong(
            name, f"{network} has room for less than four subnets of length {subnet_len}"
        )
    size = 1 << (network.max_prefixlen - subnet_len)
    # The network's own base address would be a node's, so the first subnet is left out.
    base, end = int(network.network_address), int(network.broadcast_address) + 1
    first = _bound(fields, f"{prefix}SubnetMin", network, subnet_len, base + size)
    last = _bound(fields, f"{prefix}SubnetMax", network, subnet_len, end - size)
    if int(first) > int(last):
        raise fields.wrong(f"{prefix}SubnetMin", f"{first} is after {prefix}SubnetMax {last}")
    return SubnetRange(network, subnet_len, first, last)


def _network(fields: _Fields, name: str, version: Version) -> IPNetwork:
    text = fields.get(name, str, "")
    if not text:
        raise fields.wrong(name, "is missing", remedy="give the pod network as a CIDR")
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise fields.wrong(name, f"{text!r} is not a CIDR") from None
    if network.version != version:
        raise fields.wrong(name, f"{text} is not an IPv{version} CIDR")
    if reason := not_for_pods(network):
        raise fields.wrong(name, f"{network} can't be a pod network: {reason}")
    return network


def _bound(
    fields: _Fields, name: str, network: IPNetwork, subnet_len: int, default: int
) -> IPAddress:
    kind = type(network.network_address)
    text = fields.get(name, str, "")
    if not text:
        return kind(default)
    try:
        address = kind(text)
    except ValueError:
        raise fields.wrong(name, f"{text!r} is not an IPv{network.version} address") from None
    if not int(address):
        return kind(default)
    if address not in network:
        raise fields.wrong(name, f"{address} is not in {network}")
    if int(address) % (1 << (network.max_prefixlen - subnet_len)):
        raise fields.wrong(name, f"{address} is not where a subnet of length {subnet_len} begins")
    return address


def _backend(fields: _Fields, version: int) -> BackendOptions:
    options = fields.object("Backend")
    if options is None:
        return BackendOptions(type=_DEFAULT_BACKEND)
    name = options.get("Type", str, "").lower()
    if not name:
        raise options.wrong("Type", "is missing", remedy="e.g. vxlan, host-gw or udp")
    mtu = _number(options, "MTU", 576, 65535)
    if mtu is not None and name in VXLAN_BACKENDS:
        # Flannel means the underlay's, which the tunnel's headers have to fit into.
        mtu = vxlan.mtu(mtu, version)
    return BackendOptions(
        type=name,
        vni=_number(options, "VNI", 1, _MAX_VNI),
        port=_number(options, "Port", 0, 65535) or None,
        direct_routing=options.get("DirectRouting", bool, False),
        learning=options.get("Learning", bool, False),
        gbp=options.get("GBP", bool, False),
        mtu=mtu,
    )


def _number(options: _Fields, name: str, least: int, most: int) -> int | None:
    value = options.get(name, int | None, None)  # type: ignore[arg-type]
    if value is not None and not least <= value <= most:
        raise options.wrong(name, f"{value} is not between {least} and {most}")
    return value
