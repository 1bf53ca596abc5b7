"""Which store an agent's leases are in, by its configuration."""

from __future__ import annotations

from podwire.agent.config import AgentConfig
from podwire.cluster.etcd.leases import EtcdLeases
from podwire.cluster.etcd.url import parse_url
from podwire.cluster.kube import ClientConfig
from podwire.cluster.kube.leases import KubeLeases
from podwire.cluster.source import LeaseSource
from podwire.errors import InputError

KUBE = "kube"


def lease_source(config: AgentConfig) -> LeaseSource:
    """The store that `--store` names, not connected yet. Raises InputError."""
    if config.store == KUBE:
        return KubeLeases(
            ClientConfig.load(config.kubeconfig),
            config.node_name,
            only_pod_cidrs=config.options.fabric().ipam == "node-subnet",
        )
    if "://" not in config.store:
        raise InputError(
            f"{config.store!r} is neither {KUBE} nor the URL of an etcd",
            field="--store",
            remedy="e.g. etcd://10.0.0.1:2379",
        )
    return EtcdLeases(parse_url(config.store), config.node_name)
