"""Faults as a lab's record has them: how they add up, are healed, and become nft rules."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import pytest

from podwire.errors import InputError
from podwire.lab.faults import ETCD_PORT, Cut, Faults, check_names, ruleset

from ..conftest import Namespace

INDEXES = {"node1": 1, "node2": 2, "node3": 3}


def test_a_pair_is_cut_once_whichever_is_named_first() -> None:
    faults = Faults().cut("node3", ["node1"], None, 0).cut("node1", ["node3", "node2"], None, 0)
    assert faults.cuts == (Cut("node1", "node3"), Cut("node1", "node2"))
    assert Faults().cut("node1", [], "udp", 8472).cuts == (Cut("node1", None, "udp", 8472),)


def test_healing_undoes_what_concerns_a_node_and_nothing_else() -> None:
    faults = Faults().cut("node1", ["node2", "node3"], None, 0).killed(["node3", "api"])
    faults = faults.without_api(["node2"])
    assert faults.healed(["node2"]) == Faults(dead=("node3", "api"), cuts=(Cut("node1", "node3"),))
    assert not faults.healed(["node1", "node2", "node3", "api"])


def test_faults_are_told_one_by_one() -> None:
    faults = Faults().killed(["node2"]).cut("node1", [], "udp", 8472).without_api(["node3"])
    assert list(faults.sentences()) == [
        "node2 is dead",
        "partition: node1 from all other nodes (udp port 8472)",
        "partition: node3 from the API",
    ]


def test_names_are_checked() -> None:
    with pytest.raises(InputError, match="'node9' is not one of node1, node2"):
        check_names(["node1", "node9"], ["node1", "node2"])


def test_nothing_wrong_needs_no_rules() -> None:
    assert ruleset(Faults(dead=("node2",)), INDEXES, ETCD_PORT) == ""
    assert ruleset(Faults(no_api=("node2",)), INDEXES, None) == ""
    # Of a node that is gone there is nothing to cut.
    assert ruleset(Faults(cuts=(Cut("node1", "node9"),)), INDEXES, None) == ""


def test_rules_drop_both_ways() -> None:
    text = ruleset(Faults(cuts=(Cut("node1", "node3", "udp", 8472),)), INDEXES, None)
    assert 'meta mark 1 oifname "node3" udp dport 8472 drop' in text
    assert 'meta mark 3 oifname "node1" udp dport 8472 drop' in text
    assert text.count("drop") == 2


@pytest.mark.root
@pytest.mark.parametrize(
    "faults",
    [
        Faults(cuts=(Cut("node1", "node3"), Cut("node2", None), Cut("node1", None, "tcp", 80))),
        Faults(no_api=("node2",)),
    ],
)
def test_nft_takes_the_rules(make_namespace: Callable[[], Namespace], faults: Faults) -> None:
    assert shutil.which("nft")
    subprocess.run(
        ["ip", "netns", "exec", make_namespace().name, "nft", "-f", "-"],
        input=ruleset(faults, INDEXES, ETCD_PORT),
        text=True,
        check=True,
    )
