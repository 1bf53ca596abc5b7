"""Options that several commands on objects share, spelled as kubectl spells them."""

from __future__ import annotations

import math
import re
from typing import Any

import click

namespace_option = click.option(
    "-n", "--namespace", metavar="NS", help="Namespace (default: the kubeconfig's own)."
)
all_namespaces_option = click.option(
    "-A", "--all-namespaces", is_flag=True, help="Objects of every namespace."
)
selector_option = click.option(
    "-l", "--selector", metavar="LABELS", help="Only objects with these labels (app=web,tier!=db)."
)
field_selector_option = click.option(
    "--field-selector", metavar="FIELDS", help="Only objects with these fields (spec.nodeName=n1)."
)
container_option = click.option(
    "-c", "--container", metavar="NAME", help="Container (default: the pod's first)."
)

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(h|ms|m|s))")
_SECONDS = re.compile(r"\d+(\.\d+)?")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class Duration(click.ParamType[float]):
    """A duration as Go writes it (`90s`, `1m30s`, `500ms`), or bare seconds; gives seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, int | float):
            return float(value)
        text = str(value)
        parts = _DURATION.findall(text)
        if _SECONDS.fullmatch(text):
            return float(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            self.fail(f"{text!r} is no duration; write 30s, 1m30s or 500ms", param, ctx)
        return sum(float(number) * _UNIT_S[unit] for number, unit in parts)


DURATION = Duration()


class Interval(click.FloatRange):
    """Seconds within a range, of which `nan`, which no comparison finds outside, is none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number", param, ctx)
        return seconds
