"""What the guards and the UDP tunnel drop: is somebody sending what is not theirs to send?

A count by itself says little, since it never falls: a node that was not known yet when it first
sent something is in it for ever. So only what grows while the examination lasts is a finding.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from podwire.agent import guard
from podwire.agent.doctor.subject import Findings, Subject, named
from podwire.plan import isolation
from podwire.trace.wire import Checked

_find = Findings("guards")
#: So long the counters are watched, with whatever else is measured.
_AT_LEAST_S = 0.3

#: What is dropped on purpose, or sent by pods all day: nobody's fault.
_USUAL = frozenset({isolation.ISOLATED.name, "multicast", "no_lease", "ttl_expired", "too_big"})
_REMEDIES = {
    "spoofed_ip": "let the pod send with its own address; or, if it is to do that: annotation"
    ' podwire.io/anti-spoofing: "off"',
    "spoofed_arp": "look which pod answers for another's address: podwire capture",
    "spoofed_nd": "look which pod answers for another's address: podwire capture",
    "spoofed_ra": "is that pod meant to be a router? Then: annotation"
    ' podwire.io/anti-spoofing: "off"',
    "vxlan_stranger": "who sends that? podwire capture; is it a node whose lease is not used?",
    "not_a_peer": "who sends that? podwire capture; is it a node whose lease is not used?",
    "not_authentic": "does something on the way change datagrams, or has a peer another key than it"
    " published? podwire get nodes -o yaml",
    "handshake_forged": "has a peer another key than it published? podwire get nodes -o yaml",
    "not_encrypted": "start all nodes' agents with --encrypt, or none",
    "no_public_key": "start all nodes' agents with --encrypt, or none",
}


async def examine(subject: Subject) -> AsyncIterator[Checked]:
    agent = subject.agent
    if agent.network is None:
        return
    shaped = await asyncio.to_thread(guard.shaping_list, agent.config)
    if shaped is not None and agent.network.guard == "ebpf":
        yield _find.warn(
            f"{shaped} chains the plugin bandwidth, which fails for pods whose egress is limited:"
            " Podwire's guards have the ingress qdiscs of pods' ports",
            "start the agent without --guard ebpf: it guards by nftables then",
        )
    before = {one.reason: one.packets for one in await agent.drops.read()}
    # What is measured meanwhile is nothing that would be dropped.
    await asyncio.gather(subject.measure(), asyncio.sleep(_AT_LEAST_S))
    counts = await agent.drops.read()
    growing = [
        one
        for one in counts
        if one.reason not in _USUAL and one.packets > before.get(one.reason, 0)
    ]
    for one in growing:
        more = one.packets - before.get(one.reason, 0)
        yield _find.warn(
            f"{more} dropped just now ({one.packets} in all): {one.meaning} ({one.reason})",
            _REMEDIES.get(one.reason, f"podwire status --node {subject.node} counts them"),
        )
    if not growing:
        told = [
            f"{one.packets} {one.reason}"
            for one in counts
            if one.packets and one.reason not in _USUAL
        ]
        yield _find.ok(f"nothing is being dropped by them; until now: {named(told) or 'nothing'}")
