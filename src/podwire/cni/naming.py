"""Names of pods' host ends: functions of who the pod is, so that whatever a crash leaves is found.

Most are the fabric's prefix and a digest of container and interface. Where Calico is at home the
name of a pod's first interface is exactly Calico's, since people and their scripts compute it:
`cali` and 11 hex digits of the SHA-1 of `NAMESPACE.POD`.
"""

from __future__ import annotations

import hashlib

from podwire.ipam.record import Key, PodIdentity
from podwire.model.fabric import Fabric
from podwire.plan.profiles import PROFILES

_LENGTH = 15  # IFNAMSIZ less the terminating zero (linux/if.h)
_CALICO_PREFIX, _CALICO_DIGITS = "cali", 11
_FIRST = "eth0"


def host_ifname(fabric: Fabric, key: Key, pod: PodIdentity) -> str:
    """The host end of one interface of a pod, or of a container that is none."""
    prefix = fabric.port_prefix
    if prefix == _CALICO_PREFIX and key.ifname == _FIRST and pod.namespace and pod.name:
        digest = hashlib.sha1(f"{pod.namespace}.{pod.name}".encode(), usedforsecurity=False)
        return prefix + digest.hexdigest()[:_CALICO_DIGITS]
    digest = hashlib.sha256("/".join(key).encode())
    return prefix + digest.hexdigest()[: min(_CALICO_DIGITS, _LENGTH - len(prefix))]


def host_ifnames(key: Key, pod: PodIdentity) -> frozenset[str]:
    """What the host end may be called, whichever fabric it was made for."""
    return frozenset(host_ifname(fabric, key, pod) for fabric in PROFILES.values())
