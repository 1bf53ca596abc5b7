"""MAC addresses made of IP addresses, so that any node can say what a pod's is. Pure."""

from __future__ import annotations

import hashlib

from podwire.model.state import IPAddress


def mac_for(ip: IPAddress) -> bytes:
    """A locally administered MAC derived from an address, so that it is as unique and as stable.

    IPv4: 0a:58 and the four bytes, as kubenet and the CNI plugins did. IPv6: 0a and a digest of
    all sixteen, since which of them differ depends on how the network is split among nodes.
    """
    if ip.version == 4:
        return b"\x0a\x58" + ip.packed
    return b"\x0a" + hashlib.blake2s(ip.packed, digest_size=5).digest()
