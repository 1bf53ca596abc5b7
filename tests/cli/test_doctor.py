"""What the doctor's command makes of what the agents have found."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from podwire.cli import doctor, examination, findings
from podwire.cli.agents import Agents
from podwire.cli.examination import NodeReport, Reading, clocks_apart, explained
from podwire.errors import PodwireError
from podwire.model.state import Why
from podwire.trace.wire import VERSION, Check, Checked, Welcome

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

    monkeypatch.setattr(Agents, "all_nodes", none)
    (tmp_path / "config").touch()
    command = ["--kubeconfig", str(tmp_path / "config")]
    done = CliRunner().invoke(doctor.doctor, command, catch_exceptions=True)
    assert isinstance(done.exception, PodwireError)
    assert done.exception.message == "there is no node to examine"


# --- asking -----------------------------------------------------------------------------------


class Stub:
    """Agents that answer, hang, or are said not to be askable; and a connection to each."""

    def __init__(self, **agents: PodwireError | tuple[Checked, ...] | None) -> None:
        self._agents = agents
        self.open: set[str] = set()

    async def dial(self, node: str) -> Any:
        told = self._agents[node]
        if isinstance(told, PodwireError):
            raise told
        self.open.add(node)
        events: asyncio.Queue[Checked] = asyncio.Queue()
        for one in told or ():
            events.put_nowait(one)

        async def call(_: Check) -> None:
            if told is None:
                await asyncio.Event().wait()

        async def close() -> None:
            self.open.remove(node)

        welcome = Welcome(version=VERSION, node=node, clock="1", time_ns=time.time_ns())
        return SimpleNamespace(welcome=welcome, events=events, call=call, close=close)

    async def examined(self) -> list[NodeReport]:
        waiting = set(self._agents)
        reports = await examination.examine(
            self,  # type: ignore[arg-type]
            list(self._agents),
            ("overlap",),
            fix=False,
            waiting=waiting,
        )
        assert not waiting
        assert not self.open
        return reports


async def test_an_agent_that_hangs_while_it_examines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "_EXAMINATION_S", 0.01)
    well, ill = await Stub(node1=(FINE,), node2=None).examined()
    assert (well.healthy, ill.healthy) == (True, False)
    assert ill.findings[0].text == "the examination has not ended within 0.01 s"


async def test_an_agent_of_another_version_is_a_finding_of_its_own() -> None:
    refusal = PodwireError("the agent of node2 speaks version 7, this podwire 8", remedy="upgrade")
    well, ill = await Stub(node1=(FINE,), node2=refusal).examined()
    assert well.healthy
    assert [(one.level, one.text, one.remedy) for one in ill.findings] == [
        ("fail", refusal.message, "upgrade")
    ]


async def test_where_none_may_be_asked_the_reason_is_said() -> None:
    refusal = PodwireError("lab belongs to root", remedy="use sudo")
    with pytest.raises(PodwireError, match="belongs to root"):
        await Stub(node1=refusal, node2=refusal).examined()


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
