"""What a pod wants of its network: CNI arguments and what the runtime offers to capabilities.

Pure: a Pod in, an `Attachment` out. Source: containerd's CRI plugin (sandbox_run.go) for names and
order; capabilities as in CNI's CONVENTIONS.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from podwire.decoding import decode
from podwire.errors import InputError
from podwire.lab.cni_network import Attachment, Network
from podwire.lab.kubelet.spec import Pod
from podwire.lab.sandbox import Sandbox

IFNAME = "eth0"
_IPS = "cni.projectcalico.org/ipAddrs"
_MAC = "cni.projectcalico.org/hwAddr"
_INGRESS = "kubernetes.io/ingress-bandwidth"
_EGRESS = "kubernetes.io/egress-bandwidth"
#: Burst for a rate limit that names none: what containerd and dockershim take (all of an int32).
_BURST = 2**31 - 1

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|[kMGTPE]|[KMGTPE]i)?")
_SUFFIX = {
    "": 1.0,
    "m": 1e-3,
    **{suffix: 1000.0**power for power, suffix in enumerate("kMGTPE", 1)},
    **{f"{suffix}i": 1024.0**power for power, suffix in enumerate("KMGTPE", 1)},
}


def attachment(pod: Pod, sandbox: Sandbox, keep_ips: Sequence[str] = ()) -> Attachment:
    """`keep_ips` are asked for where the pod itself asks for none.

    Raises InputError, naming the annotation, for a value that is not as it should be.
    """
    capabilities = _capabilities(pod)
    if keep_ips:
        capabilities.setdefault("ips", list(keep_ips))
    return Attachment(
        container_id=sandbox.id,
        netns=sandbox.netns,
        ifname=IFNAME,
        args=(
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", pod.metadata.namespace),
            ("K8S_POD_NAME", pod.metadata.name),
            ("K8S_POD_INFRA_CONTAINER_ID", sandbox.id),
            ("K8S_POD_UID", pod.metadata.uid),
        ),
        capabilities=capabilities,
    )


def without_effect(pod: Pod, network: Network) -> str | None:
    """What a pod asks for that no plugin of `network` does, and the remedy, in a sentence."""
    ports = [
        f"hostPort {port.host_port}"
        for container in pod.spec.containers
        for port in container.ports
        if port.host_port
    ]
    limits = [one for one in (_INGRESS, _EGRESS) if one in pod.metadata.annotations]
    asked = (("portMappings", "portmap", ports), ("bandwidth", "bandwidth", limits))
    unmet = [one for one in asked if one[2] and not network.has_capability(one[0])]
    if not unmet:
        return None
    return (
        f"{', '.join(what for *_, asking in unmet for what in asking)}: without effect, as no"
        f" plugin of network {network.name} has the capability"
        f" {' or '.join(capability for capability, _, _ in unmet)}; chain"
        f" {' and '.join(plugin for _, plugin, _ in unmet)} behind it in /etc/cni/net.d of the"
        " node, and create the pod anew"
    )


def _capabilities(pod: Pod) -> dict[str, Any]:
    annotations = pod.metadata.annotations
    offered: dict[str, Any] = {}
    ports = [
        {
            "hostPort": port.host_port,
            "containerPort": port.container_port,
            "protocol": port.protocol.lower(),
            "hostIP": port.host_ip,
        }
        for container in pod.spec.containers
        for port in container.ports
        if port.host_port
    ]
    if ports:
        offered["portMappings"] = ports
    limits = {
        f"{direction}{what}": value
        for direction, annotation in (("ingress", _INGRESS), ("egress", _EGRESS))
        if annotation in annotations
        for what, value in (
            ("Rate", _bits_per_second(annotations[annotation], annotation)),
            ("Burst", _BURST),
        )
    }
    if limits:
        offered["bandwidth"] = limits
    if _IPS in annotations:
        offered["ips"] = _string_list(annotations[_IPS], _IPS)
    if _MAC in annotations:
        offered["mac"] = annotations[_MAC]
    return offered


def _bits_per_second(text: str, annotation: str) -> int:
    """A resource.Quantity, of bits a second."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InputError(
            f"{text!r} is not a quantity such as 10M", field=f"metadata.annotations[{annotation}]"
        )
    return int(float(match[1]) * _SUFFIX[match[2] or ""])


def _string_list(text: str, annotation: str) -> list[str]:
    return decode(
        text,
        list[str],
        field=f"metadata.annotations[{annotation}]",
        expected='a JSON list such as ["10.244.1.7"]',
        remedy="correct the annotation",
    )
