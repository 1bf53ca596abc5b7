"""What the cluster's API says of nodes and pods, as the evidence of a trace has it.

What lives here: reading it, and nothing else; who is meant by a word on the command line is the
command line's affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from podwire.cluster.kube import NODES, KubeClient
from podwire.cluster.nodes import NodeWithConditions, node_from_object
from podwire.trace.evidence import NodeFacts, PodFacts


async def read_nodes(client: KubeClient) -> tuple[NodeFacts, ...]:
    """Every node. What one published wrongly is left out. Raises ApiError."""
    # An object that can't be read at all is no reason to trace nothing.
    listed = await client.list(NODES, type=NodeWithConditions, refused=lambda *_: None)
    return tuple(map(node_facts, listed.items))


def node_facts(obj: NodeWithConditions) -> NodeFacts:
    node, _ = node_from_object(obj)
    ips = [*node.internal_ips]
    subnets = [*node.pod_cidrs]
    if node.lease is not None:
        ips = [*(one.ip for one in node.lease.endpoints), *ips]
        subnets += [one for one in node.lease.subnets if one not in subnets]
    return NodeFacts(
        name=node.name,
        ips=tuple(dict.fromkeys(map(str, ips))),
        subnets=tuple(map(str, subnets)),
        leased=node.lease is not None,
        ready=obj.ready,
    )


def pod_facts(pod: Mapping[str, Any]) -> PodFacts:
    """Of a Pod as the API gives it."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    return PodFacts(
        name=f"{metadata['namespace']}/{metadata['name']}",
        node=(pod.get("spec") or {}).get("nodeName") or "",
        ips=pod_ips(pod),
        phase=status.get("phase") or "Unknown",
    )


def pod_ips(pod: Mapping[str, Any]) -> tuple[str, ...]:
    """A pod's addresses, one of each family that it has; empty before it has any."""
    status = pod.get("status") or {}
    listed = [str(one["ip"]) for one in status.get("podIPs") or () if one.get("ip")]
    alone = status.get("podIP")
    return tuple(listed) or ((str(alone),) if alone else ())
