"""The part of a Pod that the lab's kubelet acts on, typed.

What lives here: field names and defaults as in k8s.io/api/core/v1. What does not: validation,
which is the API server's; a pod that got past it and does not fit is refused as a whole.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from podwire.errors import InputError

DEFAULT_GRACE_S = 30


class Camel(msgspec.Struct, frozen=True, rename="camel"):
    """A piece of a Kubernetes object."""


class ObjectMeta(Camel, frozen=True):
    name: str
    namespace: str
    uid: str
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None


class FieldRef(Camel, frozen=True):
    field_path: str


class KeyRef(Camel, frozen=True):
    key: str
    name: str = ""
    optional: bool = False


class EnvSource(Camel, frozen=True):
    field_ref: FieldRef | None = None
    config_map_key_ref: KeyRef | None = None


class EnvVar(Camel, frozen=True):
    name: str
    value: str = ""
    value_from: EnvSource | None = None


class ContainerPort(Camel, frozen=True):
    container_port: int
    host_port: int = 0
    protocol: str = "TCP"
    host_ip: str = msgspec.field(default="", name="hostIP")


class Container(Camel, frozen=True):
    name: str
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    working_dir: str = "/"
    ports: tuple[ContainerPort, ...] = ()


class DnsOption(Camel, frozen=True):
    name: str
    value: str | None = None


class DnsConfig(Camel, frozen=True):
    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[DnsOption, ...] = ()


class HostAlias(Camel, frozen=True):
    ip: str
    hostnames: tuple[str, ...] = ()


class PodSpec(Camel, frozen=True):
    containers: tuple[Container, ...]
    init_containers: tuple[Container, ...] = ()
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    termination_grace_period_seconds: int = DEFAULT_GRACE_S
    host_network: bool = False
    hostname: str = ""
    dns_policy: str = "ClusterFirst"
    dns_config: DnsConfig = DnsConfig()
    host_aliases: tuple[HostAlias, ...] = ()


class Pod(Camel, frozen=True):
    metadata: ObjectMeta
    spec: PodSpec

    @property
    def key(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def hostname(self) -> str:
        """Host name of the pod's UTS namespace (at most 63 bytes, as Linux and DNS have it)."""
        return (self.spec.hostname or self.metadata.name)[:63].rstrip("-.")


def parse(obj: dict[str, Any]) -> Pod:
    """A Pod object of the API. Raises InputError, naming the field that does not fit."""
    try:
        return msgspec.convert(_without_nulls(obj), type=Pod)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise InputError(message, field=path.rstrip("`") or "pod") from error


_IGNORED_OF_POD = ("volumes", "securityContext", "shareProcessNamespace", "hostPID", "hostIPC")
_IGNORED_OF_CONTAINER = (
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "envFrom",
    "volumeMounts",
    "securityContext",
    "resources",
)


def ignored(obj: dict[str, Any]) -> list[str]:
    """Paths of what a Pod asks for and the lab's kubelet does not do."""
    spec = obj["spec"]
    found = [name for name in _IGNORED_OF_POD if spec.get(name)]
    for group in ("initContainers", "containers"):
        for container in spec.get(group) or ():
            found += [
                f"{group}[{container['name']}].{name}"
                for name in _IGNORED_OF_CONTAINER
                if container.get(name)
            ]
    return found


def _without_nulls(value: Any) -> Any:
    """Null means absent in the Kubernetes API, lists and maps included."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
