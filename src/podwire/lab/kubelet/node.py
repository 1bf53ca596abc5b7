"""What the parts of a kubelet share."""

from __future__ import annotations

from dataclasses import dataclass

from podwire.cluster.kube import KubeClient
from podwire.lab.kubelet.events import EventRecorder
from podwire.lab.kubelet.network import PodNetwork
from podwire.lab.kubelet.records import RecordStore


@dataclass(frozen=True, slots=True)
class Node:
    """This node. `resolv_conf` is the content of its own /etc/resolv.conf."""

    name: str
    ip: str
    client: KubeClient
    records: RecordStore
    network: PodNetwork
    events: EventRecorder
    resolv_conf: str
