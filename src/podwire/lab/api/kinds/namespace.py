"""Namespace: deleting one deletes what is in it (`controllers.namespaces` does the work)."""

from __future__ import annotations

from podwire.lab.api.kinds.meta import AGE, CONDITIONS, NAME, at, metadata_schema
from podwire.lab.api.names import dns_label
from podwire.lab.api.registry import Column, Object, ResourceKind
from podwire.lab.api.schema import Listing, Record, Text, optional, required

PROTECTED = frozenset({"default", "kube-system", "kube-node-lease"})
"""Namespaces that always exist."""


def _prepare(namespace: Object) -> None:
    namespace["spec"] = {"finalizers": ["kubernetes"]}
    namespace["status"] = {"phase": "Active"}
    metadata = namespace["metadata"]
    metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = metadata.get("name", "")


def _check_delete(namespace: Object) -> str | None:
    if namespace["metadata"]["name"] in PROTECTED:
        return "this namespace may not be deleted"
    return None


def _lingers(namespace: Object) -> bool:
    return bool((namespace.get("spec") or {}).get("finalizers"))


def _mark_deleted(namespace: Object) -> None:
    namespace.setdefault("status", {})["phase"] = "Terminating"


NAMESPACE = ResourceKind(
    group="",
    version="v1",
    kind="Namespace",
    plural="namespaces",
    singular="namespace",
    namespaced=False,
    short_names=("ns",),
    subresources={"status": ("get", "patch", "update"), "finalize": ("update",)},
    fields=("status.phase",),
    check_name=dns_label,
    status_of_new="reset",
    prepare=_prepare,
    check_delete=_check_delete,
    lingers=_lingers,
    mark_deleted=_mark_deleted,
    schema=Record(
        {
            "metadata": required(metadata_schema(dns_label, namespaced=False)),
            "spec": optional(Record({"finalizers": optional(Listing(Text()))})),
            "status": optional(
                Record(
                    {
                        "phase": optional(Text(allowed=("Active", "Terminating"))),
                        "conditions": optional(CONDITIONS),
                    }
                )
            ),
        }
    ),
    columns=(NAME, Column("Status", at("status", "phase")), AGE),
)
