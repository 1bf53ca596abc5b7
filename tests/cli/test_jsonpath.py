"""The JSONPath that kubectl's users write."""

from __future__ import annotations

import click
import pytest

from podwire.cli.jsonpath import Template

POD = {
    "metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "web"}},
    "status": {
        "podIP": "10.244.1.2",
        "ready": True,
        "podIPs": [{"ip": "10.244.1.2"}, {"ip": "fd00::2"}],
        "conditions": [
            {"type": "Initialized", "status": "True"},
            {"type": "Ready", "status": "False"},
        ],
    },
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{.status.podIP}", "10.244.1.2"),
        (".status.podIP", "10.244.1.2"),
        ("status.podIP", "10.244.1.2"),
        ("{$.status.podIP}", "10.244.1.2"),
        ("{.metadata.name}: {.status.podIP}", "a: 10.244.1.2"),
        ('{.metadata.name}{"\\n"}', "a\n"),
        ("{.status.podIPs[1].ip}", "fd00::2"),
        ("{.status.podIPs[-1].ip}", "fd00::2"),
        ("{.status.podIPs[*].ip}", "10.244.1.2 fd00::2"),
        ("{.status.podIPs[5].ip}", ""),
        ("{.metadata.labels['app.kubernetes.io/name']}", "web"),
        ("{.metadata.labels.app\\.kubernetes\\.io/name}", "web"),
        ('{.status.conditions[?(@.type=="Ready")].status}', "False"),
        ("{.status.conditions[?(@.type != 'Ready')].type}", "Initialized"),
        ("{.status.ready}", "true"),
        ("{.status.podIPs[0]}", '{"ip":"10.244.1.2"}'),
        ("{.nothing.here}", ""),
        ("{.metadata.labels.*}", "web"),
    ],
)
def test_expressions(template: str, text: str) -> None:
    assert Template(template).render(POD) == text


@pytest.mark.parametrize(
    "template", ["{.a", "{}", "{.a[}", "{.a[x]}", "{.a[?(@.b)]}", "{range .a}"]
)
def test_what_is_no_jsonpath_is_refused(template: str) -> None:
    with pytest.raises(click.BadParameter):
        Template(template)
