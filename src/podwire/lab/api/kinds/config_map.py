"""ConfigMap: small named data."""

from __future__ import annotations

from podwire.lab.api.kinds.meta import AGE, NAME, metadata_schema
from podwire.lab.api.names import base64_text, config_key, dns_subdomain
from podwire.lab.api.registry import Column, Object, ResourceKind
from podwire.lab.api.schema import (
    Boolean,
    Causes,
    Json,
    Record,
    StringMap,
    Text,
    optional,
    required,
)

_LIMIT = 1024 * 1024


def _rules(config: dict[str, Json], path: str, causes: Causes) -> None:
    data, binary = config.get("data") or {}, config.get("binaryData") or {}
    for key in sorted(data.keys() & binary.keys()):
        causes.invalid(f"data[{key}]", key, "duplicate of key present in binaryData")
    size = sum(len((value or "").encode()) for value in data.values())
    size += sum(len(value or "") * 3 // 4 for value in binary.values())
    if size > _LIMIT:
        causes.too_long("data", _LIMIT)


def _check_update(new: Object, old: Object, causes: Causes) -> None:
    if not old.get("immutable"):
        return
    if not new.get("immutable"):
        causes.forbidden("immutable", "field is immutable when `immutable` is set")
    for name in ("data", "binaryData"):
        if (new.get(name) or {}) != (old.get(name) or {}):
            causes.forbidden(name, "field is immutable when `immutable` is set")


CONFIG_MAP = ResourceKind(
    group="",
    version="v1",
    kind="ConfigMap",
    plural="configmaps",
    singular="configmap",
    namespaced=True,
    short_names=("cm",),
    check_update=_check_update,
    schema=Record(
        {
            "metadata": required(metadata_schema(dns_subdomain, namespaced=True)),
            "data": optional(StringMap(check_key=config_key)),
            "binaryData": optional(StringMap(Text(base64_text), check_key=config_key)),
            "immutable": optional(Boolean()),
        },
        also=_rules,
    ),
    columns=(
        NAME,
        Column(
            "Data",
            lambda obj: len(obj.get("data") or {}) + len(obj.get("binaryData") or {}),
            type="integer",
        ),
        AGE,
    ),
)
