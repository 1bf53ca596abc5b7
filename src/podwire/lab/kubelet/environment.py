"""Command line and environment of a container, as the Pod's author wrote them.

Pure but for the config maps, which are handed in. Source of `$(NAME)`:
third_party/forked/golang/expansion of Kubernetes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from podwire.errors import InputError
from podwire.lab.kubelet.spec import Container, EnvVar, Pod
from podwire.lab.nodes import PATH

_REFERENCE = re.compile(r"\$(?:\$|\(([^()]+)\))")
ConfigMaps = Mapping[str, Mapping[str, str]]
"""Name of a config map of the pod's namespace → its data."""


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Replace `$(NAME)`; an unknown name stays as it is, and `$$` is a dollar."""

    def value(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        return environment.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def command_line(container: Container, environment: Mapping[str, str]) -> list[str]:
    """What to execute. Raises InputError where the Pod leaves that to its image."""
    if not container.command:
        raise InputError(
            "needed in a lab: its pods run programs of this machine, not of an image",
            field="command",
            remedy=f'write out what image "{container.image}" would run',
        )
    return [expand(word, environment) for word in (*container.command, *container.args)]


def config_maps(container: Container) -> list[str]:
    """Names of the config maps that the container's environment needs."""
    sources = [variable.value_from for variable in container.env if variable.value_from]
    return [source.config_map_key_ref.name for source in sources if source.config_map_key_ref]


def environment(
    pod: Pod, container: Container, *, ips: Sequence[str], node: Mapping[str, str], maps: ConfigMaps
) -> dict[str, str]:
    """The container's environment variables.

    `node` has `spec.nodeName`, `status.hostIP` and `status.hostIPs`. Raises InputError, naming the
    variable, for a reference to what is not there.
    """
    result = {"PATH": PATH, "HOME": "/root", "HOSTNAME": pod.hostname, "TERM": "xterm"}
    fields = _fields(pod, ips) | dict(node)
    for variable in container.env:
        value = _value(variable, fields, maps)
        if value is not None:
            result[variable.name] = expand(value, result)
    return result


def _fields(pod: Pod, ips: Sequence[str]) -> dict[str, str]:
    metadata = pod.metadata
    return {
        "metadata.name": metadata.name,
        "metadata.namespace": metadata.namespace,
        "metadata.uid": metadata.uid,
        "status.podIP": ips[0] if ips else "",
        "status.podIPs": ",".join(ips),
        **{f"metadata.labels['{key}']": value for key, value in metadata.labels.items()},
        **{f"metadata.annotations['{key}']": value for key, value in metadata.annotations.items()},
    }


def _value(variable: EnvVar, fields: Mapping[str, str], maps: ConfigMaps) -> str | None:
    """A variable's value; None where an optional reference leads nowhere."""
    source = variable.value_from
    if source is None:
        return variable.value
    if source.field_ref is not None:
        path = source.field_ref.field_path
        if path.endswith("']"):
            return fields.get(path, "")
        if path not in fields:
            raise InputError(f"{path!r} is not supported", field=f"env[{variable.name}].fieldRef")
        return fields[path]
    key = source.config_map_key_ref
    if key is None:
        raise InputError(
            "only fieldRef and configMapKeyRef are supported in a lab",
            field=f"env[{variable.name}].valueFrom",
        )
    value = maps.get(key.name, {}).get(key.key)
    if value is None and not key.optional:
        raise InputError(
            f'config map "{key.name}" has no key "{key.key}"', field=f"env[{variable.name}]"
        )
    return value
