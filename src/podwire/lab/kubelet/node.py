"""What the parts of a kubelet share."""

from __future__ import annotations

from dataclasses import dataclass

from podwire.cluster.kube import KubeClient
from podwire.lab.kubelet.events import EventRecorder
from podwire.lab.kubelet.network import PodNetwork
from podwire.lab.kubelet.node_addresses import NodeAddresses
from podwire.lab.kubelet.records import RecordStore


@dataclass(frozen=True, slots=True)
class Node:
    """This node.

    `pod_network` names the network that pods are attached to; a sandbox of another has to be made
    anew. `resolv_conf` is the content of the node's own /etc/resolv.conf.
    """

    name: str
    addresses: NodeAddresses
    client: KubeClient
    records: RecordStore
    network: PodNetwork
    events: EventRecorder
    pod_network: str
    resolv_conf: str

    @property
    def ips(self) -> tuple[str, ...]:
        """Its InternalIPs, one a family, the one that it is known by first."""
        return self.addresses.ips
