"""Client of the Kubernetes API, for a real cluster and for a lab's embedded server alike.

The public face of this package; see `client.py` for the verbs, `reflect.py` for keeping up with
a collection, `config.py` for where the server and the credentials come from.

    async with KubeClient(ClientConfig.load()) as client:
        nodes = await client.list(NODES)
"""

from podwire.cluster.kube.client import KubeClient
from podwire.cluster.kube.config import ClientConfig
from podwire.cluster.kube.exec import ExecSession
from podwire.cluster.kube.objects import Bookmark, Object, ObjectList, WatchEvent
from podwire.cluster.kube.reflect import reflect
from podwire.cluster.kube.resources import (
    CONFIGMAPS,
    EVENTS,
    IP_POOLS,
    IPAM_BLOCKS,
    IPAM_RANGES,
    LEASES,
    NAMESPACES,
    NODES,
    PODS,
    Resource,
)

__all__ = [
    "CONFIGMAPS",
    "EVENTS",
    "IPAM_BLOCKS",
    "IPAM_RANGES",
    "IP_POOLS",
    "LEASES",
    "NAMESPACES",
    "NODES",
    "PODS",
    "Bookmark",
    "ClientConfig",
    "ExecSession",
    "KubeClient",
    "Object",
    "ObjectList",
    "Resource",
    "WatchEvent",
    "reflect",
]
