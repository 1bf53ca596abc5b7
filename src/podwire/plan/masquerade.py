"""Masquerade: packets that leave the cluster network take the node's address, others keep theirs.

A pod's address means nothing to anyone outside, so their answers would be lost. Multicast is left
alone, as Flannel does. Pure: values in, nft sets and chains out.
"""

from __future__ import annotations

from podwire.model.cluster import NetworkConfig
from podwire.model.state import NftChain, NftHook, NftRule, NftSet, Why

_SRCNAT = 100  # nft's name for the usual priority of source NAT
_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}


def plan_chains(config: NetworkConfig) -> tuple[tuple[NftSet, ...], tuple[NftChain, ...]]:
    """The sets and the chain that it takes; none when masquerade is switched off."""
    if not config.masquerade:
        return (), ()
    sets: list[NftSet] = []
    rules: list[NftRule] = []
    for version, family, name in ((4, "ip", "cluster4"), (6, "ip6", "cluster6")):
        networks = tuple(str(net) for net in config.network if net.version == version)
        if not networks:
            continue
        why = Why(
            f"Network/{','.join(networks)}",
            "is unknown outside, so there its pods take the node's address",
        )
        sets.append(
            NftSet(
                name=name,
                type=f"ipv{version}_addr",
                flags=("interval",),
                elements=networks,
                why=why,
            )
        )
        outside = f"{family} daddr != @{name} {family} daddr != {_MULTICAST[version]}"
        rules.append(
            NftRule(text=f"{family} saddr @{name} {outside} masquerade fully-random", why=why)
        )
    hook = NftHook(type="nat", hook="postrouting", priority=_SRCNAT)
    return tuple(sets), (NftChain(name="postrouting", hook=hook, rules=tuple(rules)),)
