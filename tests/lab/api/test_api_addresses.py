"""IPPool, IPAMBlock and IPAMRange: what is wrong with them, and how they are shown."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.api.conftest import Api

GROUP = "/apis/podwire.io/v1alpha1"
REQUIRED, INVALID, TYPE = "FieldValueRequired", "FieldValueInvalid", "FieldValueTypeInvalid"
KINDS = {"ippools": "IPPool", "ipamblocks": "IPAMBlock", "ipamranges": "IPAMRange"}


def thing(plural: str, name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "podwire.io/v1alpha1",
        "kind": KINDS[plural],
        "metadata": {"name": name},
        "spec": spec,
    }


@pytest.mark.parametrize(
    ("plural", "name", "spec", "field", "reason"),
    [
        ("ippools", "p", {}, "spec.cidr", REQUIRED),
        ("ippools", "p", {"cidr": "10.0.0.1/8"}, "spec.cidr", INVALID),
        ("ippools", "p", {"cidr": "10.0.0.0/8", "blockSize": 31}, "spec.blockSize", INVALID),
        ("ippools", "p", {"cidr": "10.0.0.0/28", "blockSize": 26}, "spec.blockSize", INVALID),
        ("ippools", "p", {"cidr": "10.0.0.0/28"}, "spec.blockSize", INVALID),
        ("ippools", "p", {"cidr": "fd00::/48", "blockSize": 26}, "spec.blockSize", INVALID),
        ("ippools", "p", {"cidr": "10.0.0.0/8", "disabled": "no"}, "spec.disabled", TYPE),
        ("ippools", "p", {"cidr": "10.0.0.0/8", "nodeSelector": "a"}, "spec.nodeSelector", INVALID),
        ("ipamblocks", "b", {"cidr": "10.0.0.0/26"}, "metadata.name", INVALID),
        ("ipamblocks", "10-0-0-0-26", {"cidr": "10.0.0.1/26"}, "spec.cidr", INVALID),
        (
            "ipamblocks",
            "10-0-0-0-26",
            {"cidr": "10.0.0.0/26", "allocations": [{"ip": "10.0.1.0", "node": "n"}]},
            "spec.allocations[0].ip",
            INVALID,
        ),
        (
            "ipamblocks",
            "10-0-0-0-26",
            {"cidr": "10.0.0.0/26", "allocations": [{"ip": "10.0.0.1"}]},
            "spec.allocations[0].node",
            REQUIRED,
        ),
        (
            "ipamranges",
            "10-0-0-0",
            {"network": "10.1.0.0/16", "first": "10.0.0.0", "node": "n"},
            "spec.first",
            INVALID,
        ),
        (
            "ipamranges",
            "r",
            {"network": "fd00::/64", "first": "fd00::", "node": "n"},
            "metadata.name",
            INVALID,
        ),
    ],
)
async def test_what_is_wrong_is_told_by_field(
    api: Api, plural: str, name: str, spec: dict[str, Any], field: str, reason: str
) -> None:
    answer = await api.post(f"{GROUP}/{plural}", thing(plural, name, **spec))
    assert answer.causes() == {field: reason}


async def test_a_pool_s_network_is_not_changed(api: Api) -> None:
    made = await api.post(f"{GROUP}/ippools", thing("ippools", "p", cidr="10.0.0.0/16"))
    assert made.body["spec"] == {"cidr": "10.0.0.0/16", "blockSize": 26, "disabled": False}
    for change, field in (
        ({"cidr": "10.1.0.0/16"}, "spec.cidr"),
        ({"blockSize": 27}, "spec.blockSize"),
    ):
        answer = await api.patch(f"{GROUP}/ippools/p", {"spec": change})
        assert answer.causes() == {field: INVALID}
    answer = await api.patch(f"{GROUP}/ippools/p", {"spec": {"disabled": True}})
    assert answer.code == 200


async def test_how_they_are_shown(api: Api) -> None:
    for plural, name, spec, shown in (
        (
            "ippools",
            "east",
            {"cidr": "10.0.0.0/16", "nodeSelector": "has(east)"},
            ["10.0.0.0/16", 26, False, "has(east)"],
        ),
        (
            "ipamblocks",
            "10-0-0-0-26",
            {"cidr": "10.0.0.0/26", "node": "n1", "used": 3},
            ["10.0.0.0/26", "n1", 3],
        ),
        (
            "ipamranges",
            "fd00--0",
            {
                "network": "fd00::/64",
                "first": "fd00::",
                "node": "n1",
                "askedBy": ["n2"],
                "giver": "8f00",
            },
            ["fd00::/64", "fd00::", "n1", "n2"],
        ),
    ):
        made = await api.post(f"{GROUP}/{plural}", thing(plural, name, **spec))
        assert made.code == 201, made.body
        accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
        async with api.session.get(api.url(f"{GROUP}/{plural}"), headers={"Accept": accept}) as got:
            table = await got.json(content_type=None)
        (row,) = table["rows"]
        assert row["cells"][:-1] == [name, *shown]
