"""The schema of a pod's `spec`: containers, their parts, and what spans them."""

from __future__ import annotations

from podwire.lab.api.kinds.meta import LABELS
from podwire.lab.api.names import (
    dns_label,
    dns_subdomain,
    env_name,
    ip_address,
    label_value,
    port_name,
    qualified_name,
)
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

_STRINGS = Listing(Text())


def _env_rules(env: dict[str, Json], path: str, causes: Causes) -> None:
    if env.get("value") and env.get("valueFrom"):
        causes.invalid(f"{path}.valueFrom", "", "may not be specified when `value` is not empty")


_ENV = Record(
    {
        "name": required(Text(env_name)),
        "value": optional(Text()),
        "valueFrom": optional(Record()),
    },
    also=_env_rules,
)

_PORT = Record(
    {
        "containerPort": required(Integer(1, 65535)),
        "hostPort": optional(Integer(0, 65535)),
        "hostIP": optional(Text(ip_address)),
        "name": optional(Text(port_name)),
        "protocol": optional(Text(allowed=("TCP", "UDP", "SCTP")), default="TCP"),
    }
)

_MOUNT = Record(
    {
        "name": required(Text()),
        "mountPath": required(Text()),
        "subPath": optional(Text()),
        "readOnly": optional(Boolean()),
    }
)


def _resource_rules(resources: dict[str, Json], path: str, causes: Causes) -> None:
    for kind in ("limits", "requests"):
        for name in resources.get(kind) or {}:
            if wrong := qualified_name(name):
                causes.invalid(f"{path}.{kind}", name, wrong)


_RESOURCES = Record(
    {
        "limits": optional(StringMap(Quantity())),
        "requests": optional(StringMap(Quantity())),
    },
    also=_resource_rules,
)


def _container_rules(container: dict[str, Json], path: str, causes: Causes) -> None:
    if not container.get("image") and not container.get("command"):
        causes.required(
            f"{path}.command",
            "must specify command (a program of this machine), or an image that names one",
        )
    names: set[str] = set()
    for index, port in enumerate(container.get("ports") or []):
        name = port.get("name")
        if name and name in names:
            causes.duplicate(f"{path}.ports[{index}].name", name)
        names.add(name)
    paths: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts") or []):
        place = mount.get("mountPath")  # that it has to be there is checked elsewhere
        if place and place in paths:
            causes.invalid(f"{path}.volumeMounts[{index}].mountPath", place, "must be unique")
        paths.add(place)


def _container(restart_policies: tuple[str, ...]) -> Record:
    return Record(
        {
            "name": required(Text(dns_label)),
            "image": optional(Text()),
            "command": optional(_STRINGS),
            "args": optional(_STRINGS),
            "workingDir": optional(Text()),
            "env": optional(Listing(_ENV, merge_key="name")),
            "envFrom": optional(Listing(Record())),
            "ports": optional(Listing(_PORT, merge_key="containerPort")),
            "resources": optional(_RESOURCES),
            "volumeMounts": optional(Listing(_MOUNT, merge_key="mountPath")),
            "volumeDevices": optional(Listing(Record(), merge_key="devicePath")),
            "imagePullPolicy": optional(Text(allowed=("Always", "Never", "IfNotPresent"))),
            "restartPolicy": optional(Text(allowed=restart_policies)),
            "livenessProbe": optional(Record()),
            "readinessProbe": optional(Record()),
            "startupProbe": optional(Record()),
            "lifecycle": optional(Record()),
            "securityContext": optional(Record()),
            "stdin": optional(Boolean()),
            "stdinOnce": optional(Boolean()),
            "tty": optional(Boolean()),
        },
        also=_container_rules,
    )


_CONTAINER = _container(restart_policies=("Always", "OnFailure", "Never"))


def _toleration_rules(toleration: dict[str, Json], path: str, causes: Causes) -> None:
    exists = toleration.get("operator") == "Exists"
    if exists and toleration.get("value"):
        causes.invalid(
            f"{path}.operator",
            toleration["value"],
            "value must be empty when `operator` is 'Exists'",
        )
    if not toleration.get("key") and not exists:
        causes.invalid(
            f"{path}.operator",
            toleration.get("operator") or "",
            "must be Exists when `key` is empty",
        )


_TOLERATION = Record(
    {
        "key": optional(Text(qualified_name)),
        "operator": optional(Text(allowed=("Exists", "Equal"))),
        "value": optional(Text(label_value)),
        "effect": optional(Text(allowed=("NoSchedule", "PreferNoSchedule", "NoExecute"))),
        "tolerationSeconds": optional(Integer()),
    },
    also=_toleration_rules,
)

_HOST_ALIAS = Record(
    {
        "ip": required(Text(ip_address)),
        "hostnames": optional(Listing(Text(dns_subdomain))),
    }
)

_DNS = Record(
    {
        "nameservers": optional(Listing(Text(ip_address))),
        "searches": optional(Listing(Text())),
        "options": optional(
            Listing(Record({"name": required(Text()), "value": optional(Text())}), merge_key="name")
        ),
    }
)


def _rules(spec: dict[str, Json], path: str, causes: Causes) -> None:
    names: set[str] = set()
    volumes = {volume.get("name") for volume in spec.get("volumes") or []}
    for lists in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(lists) or []):
            at = f"{path}.{lists}[{index}]"
            name = container.get("name")
            if name and name in names:
                causes.duplicate(f"{at}.name", name)
            names.add(name)
            for number, mount in enumerate(container.get("volumeMounts") or []):
                if mount.get("name") and mount["name"] not in volumes:
                    causes.not_found(f"{at}.volumeMounts[{number}].name", mount["name"])
            for number, port in enumerate(container.get("ports") or []):
                if spec.get("hostNetwork") and port.get("hostPort") not in (
                    None,
                    0,
                    port.get("containerPort"),
                ):
                    causes.invalid(
                        f"{at}.ports[{number}].hostPort",
                        port["hostPort"],
                        "must match `containerPort` when `hostNetwork` is true",
                    )
    if spec.get("dnsPolicy") == "None" and not (spec.get("dnsConfig") or {}).get("nameservers"):
        causes.required(
            f"{path}.dnsConfig.nameservers",
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        )


POD_SPEC = Record(
    {
        "containers": required(
            Listing(_CONTAINER, merge_key="name", non_empty=True), "at least one container"
        ),
        "initContainers": optional(Listing(_CONTAINER, merge_key="name")),
        "ephemeralContainers": optional(Listing(Record(), merge_key="name")),
        "restartPolicy": optional(Text(allowed=("Always", "OnFailure", "Never")), default="Always"),
        "terminationGracePeriodSeconds": optional(Integer(), default=30),
        "activeDeadlineSeconds": optional(Integer(1)),
        "dnsPolicy": optional(
            Text(allowed=("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")),
            default="ClusterFirst",
        ),
        "dnsConfig": optional(_DNS),
        "nodeName": optional(Text(dns_subdomain)),
        "nodeSelector": optional(LABELS),
        "hostNetwork": optional(Boolean()),
        "hostPID": optional(Boolean()),
        "hostIPC": optional(Boolean()),
        "hostname": optional(Text(dns_label)),
        "subdomain": optional(Text(dns_label)),
        "setHostnameAsFQDN": optional(Boolean()),
        "hostAliases": optional(Listing(_HOST_ALIAS, merge_key="ip")),
        "schedulerName": optional(Text(), default="default-scheduler"),
        "serviceAccountName": optional(Text(dns_subdomain)),
        "automountServiceAccountToken": optional(Boolean()),
        "enableServiceLinks": optional(Boolean(), default=True),
        "securityContext": optional(Record()),
        "imagePullSecrets": optional(Listing(Record(), merge_key="name")),
        "affinity": optional(Record()),
        "tolerations": optional(Listing(_TOLERATION)),
        "volumes": optional(
            Listing(Record({"name": required(Text(dns_label))}), merge_key="name", unique=("name",))
        ),
        "priority": optional(Integer()),
        "priorityClassName": optional(Text()),
        "runtimeClassName": optional(Text(dns_subdomain)),
        "readinessGates": optional(
            Listing(Record({"conditionType": required(Text(qualified_name))}))
        ),
        "topologySpreadConstraints": optional(Listing(Record(), merge_key="topologyKey")),
    },
    also=_rules,
)
