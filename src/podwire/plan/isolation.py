"""Pods kept apart from their own node, where that is asked for.

What a pod needs of its node as a router stays: forwarding, neighbour discovery, ICMP errors.
Everything else between the two is dropped, both ways, and counted. Pure.
"""

from __future__ import annotations

from podwire.model.cluster import NetworkConfig
from podwire.model.state import LINK_GROUP, NftChain, NftCounter, NftHook, NftRule, Why

_FILTER = 0

ISOLATED = NftCounter(name="isolated", meaning="packets between a pod and its own node")


def counters(config: NetworkConfig) -> tuple[NftCounter, ...]:
    return (ISOLATED,) if config.fabric.isolate_host else ()


def plan_chains(config: NetworkConfig) -> tuple[NftChain, ...]:
    """Two chains; none where pods and their node may talk."""
    if not config.fabric.isolate_host:
        return ()
    why = Why(f"Node/{config.node}", "keeps its pods apart from itself")
    return tuple(
        NftChain(
            name=f"isolate_{hook}",
            hook=NftHook(type="filter", hook=hook, priority=_FILTER),
            rules=tuple(
                NftRule(text=f"{_pods(config, side)} {text}", why=why)
                for text in (
                    "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit,"
                    " packet-too-big, destination-unreachable, time-exceeded,"
                    " parameter-problem } accept",
                    "icmp type { destination-unreachable, time-exceeded, parameter-problem }"
                    " accept",
                    f'counter name "{ISOLATED.name}" drop',
                )
            ),
        )
        for hook, side in (("input", "iif"), ("output", "oif"))
    )


def _pods(config: NetworkConfig, side: str) -> str:
    """What matches pods' links, by `side` of the packet; those of pods that may spoof, too."""
    if config.fabric.wiring == "bridge":
        return f'{side}name "{config.bridge}"'
    # The group leaves out links that others have named so.
    return f'{side}group {LINK_GROUP} {side}name "{config.fabric.port_prefix}*"'
