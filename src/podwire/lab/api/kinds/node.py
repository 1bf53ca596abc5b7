"""Node: a machine of the cluster; `spec.podCIDR` is the block that its pods live in."""

from __future__ import annotations

from podwire.lab.api.kinds.meta import AGE, CONDITIONS, NAME, TIME, at, condition, metadata_schema
from podwire.lab.api.names import cidr, dns_subdomain, ip_address, label_value, qualified_name
from podwire.lab.api.registry import Column, Object, ResourceKind
from podwire.lab.api.schema import (
    Boolean,
    Causes,
    Integer,
    Json,
    Listing,
    Quantity,
    Record,
    StringMap,
    Text,
    optional,
    required,
)

_ROLE = "node-role.kubernetes.io/"
_ADDRESS_TYPES = ("Hostname", "InternalIP", "ExternalIP", "InternalDNS", "ExternalDNS")


def _prepare(node: Object) -> None:
    spec = node.setdefault("spec", {})
    if spec.get("podCIDR") and not spec.get("podCIDRs"):
        spec["podCIDRs"] = [spec["podCIDR"]]
    elif not spec.get("podCIDR") and spec.get("podCIDRs"):
        spec["podCIDR"] = spec["podCIDRs"][0]


def _spec_rules(spec: dict[str, Json], path: str, causes: Causes) -> None:
    cidrs = spec.get("podCIDRs") or []
    if cidrs and spec.get("podCIDR") not in (None, "", cidrs[0]):
        causes.invalid(f"{path}.podCIDRs[0]", cidrs[0], "must be the same as podCIDR")
    families = [":" in value for value in cidrs]
    if len(cidrs) > 2 or len(set(families)) != len(families):
        causes.invalid(f"{path}.podCIDRs", cidrs, "at most one CIDR for each IP family")


def _address_rules(address: dict[str, Json], path: str, causes: Causes) -> None:
    if address.get("type") in ("InternalIP", "ExternalIP"):
        value = address.get("address") or ""
        if value and (wrong := ip_address(value)):
            causes.invalid(f"{path}.address", value, wrong)


def _check_update(new: Object, old: Object, causes: Causes) -> None:
    before, after = old.get("spec") or {}, new.get("spec") or {}
    if before.get("podCIDR"):
        for name in ("podCIDR", "podCIDRs"):
            if before.get(name) != after.get(name):
                causes.forbidden(
                    f"spec.{name}", "node updates may not change podCIDR except from empty to set"
                )
    if before.get("providerID") and before["providerID"] != after.get("providerID"):
        causes.forbidden("spec.providerID", "may not be changed once set")


def _ready(node: Object) -> str:
    ready = condition(node, "Ready").get("status")
    words = ["Ready" if ready == "True" else "NotReady" if ready == "False" else "Unknown"]
    if (node.get("spec") or {}).get("unschedulable"):
        words.append("SchedulingDisabled")
    return ",".join(words)


def _roles(node: Object) -> str:
    labels = node["metadata"].get("labels") or {}
    roles = [key.removeprefix(_ROLE) for key in labels if key.startswith(_ROLE)]
    return ",".join(sorted(roles)) or "<none>"


def _address(kind: str) -> Column:
    def value(node: Object) -> str:
        found = (node.get("status") or {}).get("addresses") or []
        ips = [str(one.get("address")) for one in found if one.get("type") == kind]
        return ",".join(ips) or "<none>"

    return Column(
        {"InternalIP": "Internal-IP", "ExternalIP": "External-IP"}[kind], value, wide=True
    )


_TAINT = Record(
    {
        "key": required(Text(qualified_name)),
        "value": optional(Text(label_value)),
        "effect": required(Text(allowed=("NoSchedule", "PreferNoSchedule", "NoExecute"))),
        "timeAdded": optional(TIME),
    }
)

_STATUS = Record(
    {
        "addresses": optional(
            Listing(
                Record(
                    {
                        "type": required(Text(allowed=_ADDRESS_TYPES)),
                        "address": required(Text()),
                    },
                    also=_address_rules,
                ),
                merge_key="type",
                unique=("type", "address"),
            )
        ),
        "conditions": optional(CONDITIONS),
        "capacity": optional(StringMap(Quantity())),
        "allocatable": optional(StringMap(Quantity())),
        "nodeInfo": optional(Record()),
        "daemonEndpoints": optional(
            Record({"kubeletEndpoint": optional(Record({"Port": optional(Integer(0, 65535))}))})
        ),
    }
)

NODE = ResourceKind(
    group="",
    version="v1",
    kind="Node",
    plural="nodes",
    singular="node",
    namespaced=False,
    short_names=("no",),
    subresources={"status": ("get", "patch", "update")},
    prepare=_prepare,
    check_update=_check_update,
    schema=Record(
        {
            "metadata": required(metadata_schema(dns_subdomain, namespaced=False)),
            "spec": optional(
                Record(
                    {
                        "podCIDR": optional(Text(cidr)),
                        "podCIDRs": optional(Listing(Text(cidr), merge_key="")),
                        "unschedulable": optional(Boolean()),
                        "taints": optional(Listing(_TAINT, unique=("key", "effect"))),
                        "providerID": optional(Text()),
                    },
                    also=_spec_rules,
                )
            ),
            "status": optional(_STATUS),
        }
    ),
    columns=(
        NAME,
        Column("Status", _ready),
        Column("Roles", _roles),
        AGE,
        Column("Version", at("status", "nodeInfo", "kubeletVersion", otherwise="")),
        _address("InternalIP"),
        _address("ExternalIP"),
        Column("OS-Image", at("status", "nodeInfo", "osImage", otherwise="<unknown>"), wide=True),
        Column(
            "Kernel-Version",
            at("status", "nodeInfo", "kernelVersion", otherwise="<unknown>"),
            wide=True,
        ),
        Column(
            "Container-Runtime",
            at("status", "nodeInfo", "containerRuntimeVersion", otherwise="<unknown>"),
            wide=True,
        ),
    ),
)
