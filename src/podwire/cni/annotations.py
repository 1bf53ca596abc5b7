"""What a pod asks for by annotation: addresses, pools, and to be let spoof. No I/O.

    podwire.io/ips: 10.244.1.9,fd00::9                   also as a JSON list
    podwire.io/pools: east,east6                         names or CIDRs of IPPools; also as JSON
    podwire.io/anti-spoofing: "off"
    cni.projectcalico.org/ipAddrs: '["10.244.1.9"]'      Calico's own, where the IPAM is blocks
    cni.projectcalico.org/ipv4pools: '["east"]'          (ipv6pools likewise)

A wrong one is refused, with its name and what was expected: a pod that asks for an address and
silently gets another one is worse than one that does not start.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

import msgspec

from podwire.cni.types import CniError, Code
from podwire.decoding import from_json
from podwire.ipam.allocator import Wish
from podwire.model.state import IPAddress

IPS = "podwire.io/ips"
POOLS = "podwire.io/pools"
ANTI_SPOOFING = "podwire.io/anti-spoofing"

_CALICO_IPS = "cni.projectcalico.org/ipAddrs"
_CALICO_POOLS = {4: "cni.projectcalico.org/ipv4pools", 6: "cni.projectcalico.org/ipv6pools"}


class PodWish(msgspec.Struct, frozen=True):
    """What the annotations of one pod say."""

    wish: Wish = Wish()
    may_spoof: bool = False


def parse(
    annotations: Mapping[str, str], *, calico: bool, ips: tuple[IPAddress, ...] = ()
) -> PodWish:
    """What a pod asks for; `ips` is what its runtime asked for already. Raises CniError.

    `calico` lets Calico's annotations count, ours come first.
    """
    key = IPS
    if calico and IPS not in annotations and _CALICO_IPS in annotations:
        key = _CALICO_IPS
    asked = tuple(_address(key, text) for text in _list(annotations, key))
    pools_keys = [POOLS]
    if calico and POOLS not in annotations:
        pools_keys = [one for one in _CALICO_POOLS.values() if one in annotations] or [POOLS]
    pools = tuple(name for one in pools_keys for name in _list(annotations, one))
    wish = Wish(
        ips=tuple(dict.fromkeys((*ips, *asked))),
        pools=pools,
        ips_field=_field(key) if asked else "",
        pools_field=_field(pools_keys[0]),
    )
    return PodWish(wish, _may_spoof(annotations))


def _may_spoof(annotations: Mapping[str, str]) -> bool:
    text = annotations.get(ANTI_SPOOFING, "on")
    if text not in ("on", "off"):
        raise _wrong(ANTI_SPOOFING, text, '"on" or "off"')
    return text == "off"


def _list(annotations: Mapping[str, str], key: str) -> list[str]:
    """A comma list, or a list in JSON; what is there and empty is wrong."""
    text = annotations.get(key)
    if text is None:
        return []
    found = [part.strip() for part in text.split(",")]
    if text.lstrip().startswith("["):
        try:
            found = from_json(text, list[str])
        except msgspec.DecodeError:
            found = []
    if not found or not all(found):
        raise _wrong(key, text, 'a list such as "a,b" or ["a", "b"]')
    return found


def _address(key: str, text: str) -> IPAddress:
    try:
        return ip_address(text)
    except ValueError:
        raise _wrong(key, text, "an IP address, without a prefix length") from None


def _wrong(key: str, text: str, expected: str) -> CniError:
    return CniError(
        Code.ADDRESS_REFUSED,
        f"{_field(key)}: {text!r} is wrong; expected {expected}",
        f"correct the pod's annotation {key}, or remove it",
    )


def _field(key: str) -> str:
    return f"metadata.annotations[{key}]"
