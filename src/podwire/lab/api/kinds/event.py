"""Event (core v1): what happened to an object, for people. Kept for an hour."""

from __future__ import annotations

from podwire.lab.api.kinds.meta import NAME, TIME, age, at, metadata_schema
from podwire.lab.api.names import dns_subdomain
from podwire.lab.api.registry import Column, Object, ResourceKind
from podwire.lab.api.schema import Causes, Integer, Json, Record, Text, optional, required


def _rules(event: dict[str, Json], path: str, causes: Causes) -> None:
    involved = (event.get("involvedObject") or {}).get("namespace") or "default"
    namespace = (event.get("metadata") or {}).get("namespace")
    if involved != namespace:
        causes.invalid(
            "involvedObject.namespace", involved, f'does not match event.namespace "{namespace}"'
        )


def _last_seen(event: Object) -> str:
    series = (event.get("series") or {}).get("lastObservedTime")
    first = event.get("firstTimestamp") or event["metadata"].get("creationTimestamp")
    return age(series or event.get("lastTimestamp") or event.get("eventTime") or first)


def _subject(event: Object) -> str:
    involved = event.get("involvedObject") or {}
    return f"{str(involved.get('kind', '')).lower()}/{involved.get('name', '')}"


def _source(event: Object) -> str:
    source = event.get("source") or {}
    parts = [source.get("component") or event.get("reportingComponent"), source.get("host")]
    return ", ".join(part for part in parts if part)


EVENT = ResourceKind(
    group="",
    version="v1",
    kind="Event",
    plural="events",
    singular="event",
    namespaced=True,
    short_names=("ev",),
    fields=(
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    schema=Record(
        {
            "metadata": required(metadata_schema(dns_subdomain, namespaced=True)),
            "involvedObject": required(
                Record(
                    {
                        "kind": optional(Text()),
                        "namespace": optional(Text()),
                        "name": optional(Text()),
                        "uid": optional(Text()),
                    }
                )
            ),
            "reason": optional(Text()),
            "message": optional(Text()),
            "type": optional(Text(allowed=("Normal", "Warning"))),
            "count": optional(Integer(0)),
            "firstTimestamp": optional(TIME),
            "lastTimestamp": optional(TIME),
            "eventTime": optional(TIME),
            "series": optional(
                Record({"count": optional(Integer(0)), "lastObservedTime": optional(TIME)})
            ),
            "source": optional(Record({"component": optional(Text()), "host": optional(Text())})),
        },
        also=_rules,
    ),
    columns=(
        Column("Last Seen", _last_seen),
        Column("Type", at("type", otherwise="")),
        Column("Reason", at("reason", otherwise="")),
        Column("Object", _subject),
        Column("Subobject", at("involvedObject", "fieldPath", otherwise=""), wide=True),
        Column("Source", _source, wide=True),
        Column("Message", lambda event: str(event.get("message") or "").strip()),
        Column(
            "First Seen",
            lambda e: age(e.get("firstTimestamp") or e["metadata"].get("creationTimestamp")),
            wide=True,
        ),
        Column("Count", lambda event: event.get("count") or 1, type="string", wide=True),
        Column(NAME.name, NAME.value, wide=True),
    ),
)
