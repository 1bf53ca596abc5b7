"""By what a node does anti-spoofing: as it was asked to, or as its kernel can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from podwire.agent import guard
from podwire.agent.config import AgentConfig, GuardChoice
from podwire.agent.fabrics import FabricOptions
from podwire.errors import UnsupportedError
from podwire.kernel import features
from podwire.model.fabric import Guard


@pytest.mark.root
@pytest.mark.parametrize(
    ("asked", "chosen"), [("auto", "ebpf"), ("ebpf", "ebpf"), ("nftables", "nftables")]
)
def test_programs_where_the_kernel_takes_them(asked: GuardChoice, chosen: Guard) -> None:
    assert guard.choose(AgentConfig(node_name="node1", guard=asked)) == chosen


def test_without_anti_spoofing_nothing_is_tried_out() -> None:
    options = FabricOptions(anti_spoofing=False)
    assert guard.choose(AgentConfig(node_name="node1", options=options)) == "nftables"


def test_a_kernel_that_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = features.Feature("eBPF", "Operation not permitted")
    monkeypatch.setattr(features, "guard_feature", lambda: lacking)
    assert guard.choose(AgentConfig(node_name="node1")) == "nftables"
    with pytest.raises(UnsupportedError, match="Operation not permitted") as refused:
        guard.choose(AgentConfig(node_name="node1", guard="ebpf"))
    assert "nftables" in str(refused.value.remedy)


_CHAINED = json.dumps({"name": "a", "plugins": [{"type": "podwire"}, {"type": "bandwidth"}]})


@pytest.mark.parametrize(
    ("content", "shapes"),
    [
        (_CHAINED, True),
        (_CHAINED.replace("podwire", "bridge"), False),
        (_CHAINED.replace("bandwidth", "portmap"), False),
        (_CHAINED[:-3], False),
        ('{"plugins": [7]}', False),
        ("[" * 5000, False),
    ],
)
def test_a_chained_plugin_that_needs_the_same_place(
    tmp_path: Path, content: str, shapes: bool
) -> None:
    (tmp_path / "05-list.conflist").write_text(content)
    config = AgentConfig(node_name="node1", cni_conf_dir=tmp_path)
    assert (guard.shaping_list(config) is not None) == shapes
    if shapes:
        assert guard.choose(config) == "nftables"
