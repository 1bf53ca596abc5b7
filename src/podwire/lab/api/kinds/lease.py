"""Lease (coordination.k8s.io): a heartbeat; a node renews its own in kube-node-lease."""

from __future__ import annotations

from podwire.lab.api.kinds.meta import AGE, NAME, TIME, at, metadata_schema
from podwire.lab.api.names import dns_subdomain
from podwire.lab.api.registry import Column, ResourceKind
from podwire.lab.api.schema import Integer, Record, Text, optional, required

LEASE = ResourceKind(
    group="coordination.k8s.io",
    version="v1",
    kind="Lease",
    plural="leases",
    singular="lease",
    namespaced=True,
    schema=Record(
        {
            "metadata": required(metadata_schema(dns_subdomain, namespaced=True)),
            "spec": optional(
                Record(
                    {
                        "holderIdentity": optional(Text()),
                        "leaseDurationSeconds": optional(Integer(1)),
                        "acquireTime": optional(TIME),
                        "renewTime": optional(TIME),
                        "leaseTransitions": optional(Integer(0)),
                    }
                )
            ),
        }
    ),
    columns=(NAME, Column("Holder", at("spec", "holderIdentity", otherwise="")), AGE),
)
