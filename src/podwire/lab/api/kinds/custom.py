"""What Podwire's own kinds (podwire.io) have in common: how such a resource is declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from podwire.lab.api.kinds.meta import AGE, NAME, metadata_schema
from podwire.lab.api.names import dns_subdomain
from podwire.lab.api.registry import Column, Object, ResourceKind
from podwire.lab.api.schema import Causes, Field, Json, Record, required

Rules = Callable[[dict[str, Json], str, Causes], None]


def custom_resource(
    kind: str,
    spec: Mapping[str, Field],
    columns: tuple[Column, ...],
    *,
    spec_rules: Rules,
    rules: Rules | None = None,
    fixed: tuple[str, ...],
    why_fixed: str = "field is immutable",
    **more: Any,
) -> ResourceKind:
    """A kind of the whole cluster with a spec, of which `fixed` fields may not be changed.

    `spec_rules` and `rules` check what spans several fields, of the spec and of the whole object;
    `columns` stand between name and age; `more` is as in `ResourceKind`.
    """

    def check_update(new: Object, old: Object, causes: Causes) -> None:
        for name in fixed:
            if new["spec"].get(name) != old["spec"].get(name):
                causes.invalid(f"spec.{name}", new["spec"].get(name), why_fixed)

    return ResourceKind(
        group="podwire.io",
        version="v1alpha1",
        kind=kind,
        plural=f"{kind.lower()}s",
        singular=kind.lower(),
        namespaced=False,
        check_update=check_update,
        schema=Record(
            {
                "metadata": required(metadata_schema(dns_subdomain, namespaced=False)),
                "spec": required(Record(spec, also=spec_rules)),
            },
            also=rules,
        ),
        columns=(NAME, *columns, AGE),
        **more,
    )
