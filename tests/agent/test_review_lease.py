"""Node objects that no lease can be made of: refused with the field, not half used."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from podwire.agent.config import AgentConfig, parse_network
from podwire.agent.lease import node_config
from podwire.cluster.nodes import PUBLIC_IP_OVERWRITE, NodeObject
from podwire.errors import InputError
from podwire.model.cluster import Underlay

CONFIG = AgentConfig(node_name="node1", network=parse_network("10.244.0.0/16,fd00:244::/48"))
UNDERLAY = Underlay("eth0", ip_address("172.18.0.11"), 1500)


@pytest.mark.parametrize(
    ("spec", "annotations", "field", "says"),
    [
        ({"podCIDR": "10.244.1.7/24"}, {}, "spec.podCIDR", "has host bits set"),
        ({"podCIDR": "fd00:244:0:1::/200"}, {}, "spec.podCIDR", "fd00:244:0:1::/200"),
        (
            {"podCIDRs": ["10.244.1.0/24", "10.244.2.0/24"]},
            {},
            "spec.podCIDRs",
            "two of one family",
        ),
        (
            {"podCIDR": "10.244.1.0/24"},
            {PUBLIC_IP_OVERWRITE: "fd00::1"},
            f"metadata.annotations[{PUBLIC_IP_OVERWRITE}]",
            "another family",
        ),
    ],
)
def test_what_is_no_lease_is_refused_with_its_field(
    spec: dict[str, Any], annotations: dict[str, str], field: str, says: str
) -> None:
    obj = {"metadata": {"name": "node1", "annotations": annotations}, "spec": spec}
    with pytest.raises(InputError, match=says) as refused:
        node_config(CONFIG, msgspec.convert(obj, NodeObject), UNDERLAY, None)
    assert refused.value.field == field
