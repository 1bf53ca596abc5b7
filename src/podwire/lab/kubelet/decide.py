"""Which containers should run, and what that makes of the pod.

Pure: pod and record in, a decision out. Source: computePodActions and getPhase of Kubernetes'
kubelet.
"""

from __future__ import annotations

from typing import Literal

from podwire.lab.kubelet.records import PodRecord
from podwire.lab.kubelet.spec import Container, Pod


def restarts(pod: Pod, record: PodRecord, name: str) -> bool:
    """Whether a container that has ended is to run again."""
    known = record.known(name)
    if known.state != "terminated" or known.ended is None:
        return False
    policy = pod.spec.restart_policy
    is_init = any(init.name == name for init in pod.spec.init_containers)
    if policy == "Always" and not is_init:
        return True
    return policy != "Never" and known.ended.exit_code != 0


def startable(pod: Pod, record: PodRecord) -> list[Container]:
    """The containers to start, now or when their back-off is over.

    Init containers come one by one, each after the one before it has succeeded.
    """
    for container in pod.spec.init_containers:
        known = record.known(container.name)
        if known.state == "terminated" and known.ended and known.ended.exit_code == 0:
            continue
        return [container] if known.state != "running" else []
    return [
        container
        for container in pod.spec.containers
        if record.known(container.name).state == "waiting" or restarts(pod, record, container.name)
    ]


def phase(pod: Pod, record: PodRecord) -> Literal["Pending", "Running", "Succeeded", "Failed"]:
    """The pod's phase; `Succeeded` and `Failed` are for good."""
    for container in pod.spec.init_containers:
        init = record.known(container.name)
        if init.state == "terminated" and init.ended and init.ended.exit_code != 0:
            return "Failed" if pod.spec.restart_policy == "Never" else record.phase
    known = [record.known(container.name) for container in pod.spec.containers]
    if all(one.ended and not restarts(pod, record, one.name) for one in known):
        failed = any(one.ended.exit_code for one in known if one.ended)
        return "Failed" if failed else "Succeeded"
    return "Running" if any(one.ran for one in known) else "Pending"
