"""What the doctor's command makes of what the agents have found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from podwire.cli import doctor, findings
from podwire.cli.examination import NodeReport, Reading, clocks_apart, explained
from podwire.errors import PodwireError
from podwire.model.state import Why
from podwire.trace.wire import Checked

FINE = Checked(check="overlap", level="ok", text="nothing overlaps")
WARNING = Checked(
    check="forwarding", level="warn", text="it is strict", remedy="have it loose", lines=("loosen",)
)
MISSING = Checked(
    check="desired",
    level="fail",
    text="route 10.244.2.0/24 is missing",
    remedy="the agent is held",
    lines=("ip route add 10.244.2.0/24",),
    why=Why("Node/node2", "leases 10.244.2.0/24"),
)
MENDED = Checked(
    check="desired",
    level="fail",
    text="link cni0 is missing",
    lines=("ip link add cni0",),
    fixed=True,
)


def text_of(capsys: pytest.CaptureFixture[str], *reports: NodeReport) -> list[str]:
    findings.print_text(reports)
    return capsys.readouterr().out.splitlines()


def test_warnings_and_what_was_mended_leave_a_node_healthy() -> None:
    assert NodeReport("node1", (FINE, WARNING, MENDED)).healthy
    assert not NodeReport("node1", (FINE, MISSING)).healthy


def test_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    reports = [NodeReport("node1", (MISSING, WARNING, FINE)), NodeReport("node2", (MENDED,))]
    assert text_of(capsys, *reports) == [
        "node1: 1 problem, 1 warning",
        "  ✗ desired     route 10.244.2.0/24 is missing",
        "                # Node/node2 leases 10.244.2.0/24",
        "                ip route add 10.244.2.0/24",
        "                → the agent is held",
        "  ! forwarding  it is strict",
        "                → have it loose",
        "                loosen",
        "  ✓ overlap     nothing overlaps",
        "",
        "node2: healthy, 1 mended",
        "  ✓ desired     link cni0 is missing: mended",
        "                ip link add cni0",
        "",
        "2 nodes examined: not healthy: node1",
    ]


def test_of_many_nodes_only_what_is_not_fine(capsys: pytest.CaptureFixture[str]) -> None:
    reports = [NodeReport(f"node{number}", (FINE,)) for number in range(1, 8)]
    reports[2] = NodeReport("node3", (FINE, WARNING))
    assert text_of(capsys, *reports) == [
        "node1: healthy",
        "node2: healthy",
        "node3: healthy, 1 warning",
        "  ! forwarding  it is strict",
        "                → have it loose",
        "                loosen",
        "",
        "node4: healthy",
        "node5: healthy",
        "node6: healthy",
        "node7: healthy",
        "7 nodes examined: healthy",
    ]


def test_of_many_findings_the_first_and_what_to_do_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = text_of(capsys, NodeReport("node1", (MISSING,) * 30))
    assert sum("is missing" in line for line in lines) == 10
    assert sum("→ the agent is held" in line for line in lines) == 1
    assert "                … and 20 more (-o json has all)" in lines


def test_a_here_document_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    table = Checked(
        check="desired",
        level="fail",
        text="nft table podwire is missing",
        lines=("nft -f - <<'END'", "table inet podwire {", "}", "END"),
        why=Why("Node/node1", "filters"),
    )
    lines = text_of(capsys, NodeReport("node1", (table,)))
    assert lines[3:7] == ["nft -f - <<'END'", "table inet podwire {", "}", "END"]


def test_what_others_chose_is_not_obeyed_by_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07"
    told = Checked(
        check="forwarding",
        level="fail",
        text=f"a rule: drop comment {evil}",
        remedy=evil,
        lines=(f"\tnft {evil}",),
        why=Why("Node/node1", evil),
    )
    lines = text_of(capsys, NodeReport(f"node1{evil}", (told,)))
    assert lines[3].endswith("\tnft \\x1b[2J\\x1b]0;owned\\x07")
    assert not set("".join(lines)) & {"\x1b", "\x07"}


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    findings.print_json([NodeReport("node1", (MISSING, FINE))])
    document = json.loads(capsys.readouterr().out)
    assert document["healthy"] is False
    (node,) = document["nodes"]
    assert node["node"] == "node1"
    assert node["findings"][0] == {
        "check": "desired",
        "level": "fail",
        "text": "route 10.244.2.0/24 is missing",
        "remedy": "the agent is held",
        "lines": ["ip route add 10.244.2.0/24"],
        "why": {"object": "Node/node2", "reason": "leases 10.244.2.0/24"},
        "fixed": False,
        "peer": "",
    }


def test_a_peer_that_is_itself_ill_is_the_reason() -> None:
    about = Checked(check="tunnel", level="fail", text="no answer", remedy="firewall", peer="node1")
    ill, well = NodeReport("node1", (MISSING,)), NodeReport("node2", (about,))
    assert explained([ill, well])[1].findings[0].remedy == "first mend node1, see `desired` there"
    mended = NodeReport("node1", (MENDED,))
    assert explained([mended, well])[1].findings[0].remedy == "firewall"


def test_where_there_is_no_node_nothing_is_healthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(_: object) -> list[str | None]:
        return []

    monkeypatch.setattr(doctor, "_all_nodes", none)
    (tmp_path / "config").touch()
    command = ["--kubeconfig", str(tmp_path / "config")]
    done = CliRunner().invoke(doctor.doctor, command, catch_exceptions=True)
    assert isinstance(done.exception, PodwireError)
    assert done.exception.message == "there is no node to examine"


# --- clocks -----------------------------------------------------------------------------------


def reading(boot: str, ahead_s: float, took_s: float = 0.01) -> Reading:
    return Reading(boot, ahead_s - took_s / 2, ahead_s + took_s / 2)


def test_clocks_that_agree() -> None:
    assert clocks_apart({"a": reading("1", 0.2), "b": reading("2", -0.1)}) == {}


def test_the_clock_that_is_not_where_the_others_are() -> None:
    found = clocks_apart({"a": reading("1", 0.0), "b": reading("2", 0.1), "c": reading("3", -90.0)})
    assert list(found) == ["c"]
    assert found["c"][0].text == "at least 90 s behind the clock of a"
    assert found["c"][0].level == "warn"


def test_a_clock_that_breaks_certificates() -> None:
    found = clocks_apart({"a": reading("1", 0.0), "b": reading("2", 4000.0)})
    assert found["b"][0].level == "fail"


def test_what_the_connection_took_is_no_difference() -> None:
    assert clocks_apart({"a": reading("1", 0.0), "b": reading("2", 4.0, took_s=9.0)}) == {}


def test_a_single_node_is_compared_with_this_machine() -> None:
    found = clocks_apart({"a": reading("elsewhere", 60.0)})
    assert found["a"][0].text == "at least 60 s ahead of the clock of this machine"


def test_nodes_of_one_machine_share_their_clock() -> None:
    shared = {"a": reading("1", 0.0), "b": reading("1", 40.0)}
    assert "b" not in clocks_apart({**shared, "c": reading("2", 0.0)})


def test_no_clock_was_read() -> None:
    assert clocks_apart({}) == {}
