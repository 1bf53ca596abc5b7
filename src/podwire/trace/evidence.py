"""Everything that was seen and is known of a trace: the input of `questions` and of `build`.

Values only, frozen, without I/O. The session gathers it: what the agents observed, how the probes
ended for their sender, what the kernels answer, what the cluster's API says. From it on all is
pure, so a run that was kept (it is plain data, msgspec encodes it) can be judged again.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import msgspec

from podwire.model.probe import IPText, Probe, ProbeMatch
from podwire.trace.model import Decision, Endpoint, Place
from podwire.trace.records import Drop, Frame, NftStep, ProbeResult, Question
from podwire.trace.user_tunnel import TunnelCount


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the API has it.

    `ips` are its internal addresses, those that its lease publishes before others; `subnets` are
    `spec.podCIDRs` and what it leases; `leased` whether its agent has ever published a lease.
    `ready` is the node's condition. `away` says why its agent was not observed (`no connection to
    …: refused`), and is empty where it was, or where nobody asked.
    """

    name: str
    ips: tuple[IPText, ...] = ()
    subnets: tuple[str, ...] = ()
    leased: bool = True
    ready: bool = True
    away: str = ""


class PodFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A pod as the API has it: `name` is `namespace/name`, `phase` the status's."""

    name: str
    node: str
    ips: tuple[IPText, ...] = ()
    phase: str = "Running"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster's API says. `network` are the pod networks; `pods` at least those that
    have the source's or the target's address."""

    nodes: tuple[NodeFacts, ...] = ()
    pods: tuple[PodFacts, ...] = ()
    network: tuple[str, ...] = ()

    def node(self, name: str) -> NodeFacts | None:
        return next((node for node in self.nodes if node.name == name), None)

    def node_at(self, ip: IPText) -> NodeFacts | None:
        """The node that has this address as its own."""
        return next((node for node in self.nodes if ip in node.ips), None)

    def owner(self, ip: IPText) -> NodeFacts | None:
        """The node whose subnet this address is in: the longest, since single addresses of a
        subnet may be lent to another node."""
        address = ip_address(ip)
        found = [
            (subnet.prefixlen, node)
            for node in self.nodes
            for subnet in map(ip_network, node.subnets)
            if address in subnet
        ]
        return max(found, key=lambda one: one[0])[1] if found else None

    def pod_at(self, ip: IPText) -> PodFacts | None:
        """The pod that has this address."""
        return next((pod for pod in self.pods if ip in pod.ips), None)

    def in_network(self, ip: IPText) -> bool:
        """Whether the address is in a pod network, be it in use or not."""
        return any(ip_address(ip) in ip_network(network) for network in self.network)


class Answer(msgspec.Struct, frozen=True):
    """What a kernel decided for one of `questions`."""

    question: Question
    decisions: tuple[Decision, ...]


def moved(places: Sequence[Place], offset: int) -> tuple[Place, ...]:
    """An agent's places as they are behind `offset` others: `peer_place` is an index too."""
    return tuple(
        msgspec.structs.replace(
            place,
            interfaces=tuple(
                one
                if one.peer_place is None
                else msgspec.structs.replace(one, peer_place=one.peer_place + offset)
                for one in place.interfaces
            ),
        )
        for place in places
    )


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """One trace, as far as it was seen.

    `places` are those of all agents, one after the other; `place` in frames, drops, steps and
    questions is an index into them (an agent numbers its own from 0: see `moved`). The source's
    own place and the target's, where it is observed, are found by `Endpoint.node` and
    `Endpoint.name`, an address by who has it.

    `match.ident` and `match.source` are those that the prober told. `results` are the sender's,
    empty where it can't tell. `answers` are to the questions of `questions(evidence)`, and empty
    when that is asked. `lost` are frames that matched and found no room, by node. `encrypted`: the
    user-space tunnel encrypts, so that nobody sees what is in it on the underlay; `tunnels` is what
    it counted meanwhile, by node. `notes` are told as they are: what could not be opened, for
    example.
    """

    started: str
    source: Endpoint
    target: Endpoint
    probe: Probe
    match: ProbeMatch
    places: tuple[Place, ...]
    frames: tuple[Frame, ...] = ()
    drops: tuple[Drop, ...] = ()
    steps: tuple[NftStep, ...] = ()
    results: tuple[ProbeResult, ...] = ()
    answers: tuple[Answer, ...] = ()
    facts: Facts = Facts()
    lost: dict[str, int] = {}
    encrypted: bool = False
    tunnels: dict[str, TunnelCount] = {}
    notes: tuple[str, ...] = ()
