"""What the checks are given: the agent whose node is examined, and whom to probe.

Findings are made with `Findings`, so that a check says its name once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from podwire.agent.doctor.ways import Way, ways
from podwire.model.cluster import NetworkConfig, Node
from podwire.model.state import Why
from podwire.plan.node import objections
from podwire.trace.wire import Checked

if TYPE_CHECKING:
    from podwire.agent.daemon import Agent
    from podwire.agent.doctor.measure import Measure


@dataclass(frozen=True)
class Subject:
    """One examination. `measure` probes `peers`, when it is first asked."""

    agent: Agent
    peers: tuple[Node, ...]
    fix: bool
    measure: Measure

    @property
    def node(self) -> str:
        return self.agent.config.node_name

    @property
    def network(self) -> NetworkConfig | None:
        return self.agent.network

    @property
    def ways(self) -> tuple[Way, ...]:
        """How packets get to each of the peers now."""
        network = self.network
        return ways(network, self.peers, self.agent.peering.blocked) if network is not None else ()


Examination = Callable[[Subject], AsyncIterator[Checked]]


@dataclass(frozen=True)
class Findings:
    """Makes the findings of one check."""

    check: str

    def ok(self, text: str) -> Checked:
        return Checked(check=self.check, level="ok", text=text)

    def warn(self, text: str, remedy: str = "", *lines: str) -> Checked:
        """Something that may do harm, or limits what can be seen; the node is healthy with it."""
        return Checked(check=self.check, level="warn", text=text, remedy=remedy, lines=lines)

    def fail(
        self,
        text: str,
        remedy: str = "",
        *lines: str,
        why: Why | None = None,
        fixed: bool = False,
        peer: str = "",
    ) -> Checked:
        """Something that is wrong: the node is not healthy, unless it is `fixed`."""
        return Checked(
            check=self.check,
            level="fail",
            text=text,
            remedy=remedy,
            lines=lines,
            why=why,
            fixed=fixed,
            peer=peer,
        )


def reachable_peers(agent: Agent, names: tuple[str, ...]) -> tuple[Node, ...]:
    """The peers whose leases are used, of those named, or of all where none is."""
    network = agent.network
    if network is None:
        return ()
    return tuple(
        node
        for name, node in sorted(agent.nodes.by_name.items())
        if name != network.node
        and node.lease is not None
        and (not names or name in names)
        and not objections(network, node, agent.nodes.claims)
    )


def named(names: list[str], most: int = 5) -> str:
    """`node1, node2 and node3`; of many, the first ones and how many more."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
