"""`podwire status`: how nodes are, which ways lead to their peers, and what was dropped.

What lives here: asking all agents at once, and how their answers look. What does not: what they
say (`podwire.agent.status`).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from podwire.cli import printing
from podwire.cli.context import target_options
from podwire.durations import human_duration
from podwire.errors import InputError, PodwireError
from podwire.plan.paths import over
from podwire.trace.render.ink import clean
from podwire.trace.status import NodeStatus, PathStatus, PeerStatus

if TYPE_CHECKING:
    from podwire.cli.agents import Agents

#: Agents that are asked at once; on a cluster each is a stream through the API server.
_AT_ONCE = 32
_PATIENCE_S = 20.0
_HERE = "this host"


@click.command(
    short_help="Show nodes' fabric, and the ways to their peers.",
    epilog="""\b
Examples:
  podwire status                        all nodes
  podwire status --node node1 -o wide   one, with what is known of each tunnel
  podwire status -o json | jq '.nodes[].peers[] | select(.paths[].kind == "udp")'
""",
)
@click.option("--node", "nodes", metavar="NODE", multiple=True, help="Only this node; repeatable.")
@click.option("-o", "output", type=click.Choice(["text", "wide", "json"]), default="text")
@target_options
@click.pass_context
def status(ctx: click.Context, nodes: tuple[str, ...], output: str) -> None:
    """Show nodes: fabric, lease, MTU, the way to each peer and why, and what was dropped.

    All nodes of the lab or cluster, or this host where neither is named. Exit code 0 says that all
    are well.
    """
    told = asyncio.run(_ask_all(nodes))
    if output == "json":
        document = {"well": all(one.well for one in told), "nodes": [_as_json(one) for one in told]}
        printing.print_json(document)
    else:
        for number, one in enumerate(told):
            print("\n" * (number > 0) + "\n".join(map(clean, _lines(one))))
            _print_peers(one.peers, wide=output == "wide")
            sys.stdout.write("".join(f"{clean(line)}\n" for line in _drops(one)))
    ctx.exit(0 if all(one.well for one in told) else 1)


async def _ask_all(nodes: Sequence[str]) -> list[NodeStatus]:
    from podwire.cli.agents import agents

    async with agents() as them:
        chosen: list[str | None] = list(dict.fromkeys(nodes)) or await them.all_nodes()
        if not chosen:
            raise PodwireError("there is no node to ask", remedy="podwire get nodes lists them")
        limit = asyncio.Semaphore(_AT_ONCE)
        failed: list[PodwireError] = []

        async def one(node: str | None) -> NodeStatus:
            async with limit:
                try:
                    return await _ask(them, node)
                except InputError:
                    raise
                except PodwireError as error:
                    failed.append(error)
                    return NodeStatus(
                        node=node or _HERE,
                        store="",
                        connected=False,
                        held=False,
                        problems=(str(error),),
                    )

        told = await asyncio.gather(*map(one, chosen))
        if len(failed) == len(chosen):
            raise failed[0]
        return told


async def _ask(them: Agents, node: str | None) -> NodeStatus:
    from podwire.trace.wire import Status

    connection = await them.dial(node)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return (await connection.call(Status(id=0))).status
    except TimeoutError:
        raise PodwireError(
            f"the agent did not answer within {_PATIENCE_S:g} s", remedy="is it stopped or stuck?"
        ) from None
    finally:
        await connection.close()


def _as_json(one: NodeStatus) -> dict[str, object]:
    document: dict[str, object] = msgspec.to_builtins(one)
    return {"node": one.node, "well": one.well, **document}


_GUARDS = {"ebpf": "eBPF at each pod's port"}


def _lines(one: NodeStatus) -> Iterator[str]:
    """What is known of the node itself."""
    if not one.profile:
        yield one.node
    else:
        fabric = f"{one.profile} ({one.ipam} × {one.wiring} × {one.transport})"
        yield "  ".join((one.node, fabric, *one.options))
        pods = "1 pod" if one.pods == 1 else f"{one.pods} pods"
        yield f"  network   {', '.join(one.network)}, leases {', '.join(one.subnets)}, {pods}"
        ips = ", ".join(one.underlay_ips)
        yield f"  underlay  {one.underlay} {ips}, MTU {one.underlay_mtu}, pods' MTU {one.mtu}"
    if one.anti_spoofing:
        yield f"  guards    anti-spoofing by {_GUARDS.get(one.anti_spoofing, one.anti_spoofing)}"
    if one.tunnel is not None:
        times = one.tunnel.restarts
        restarts = f", restarted {'once' if times == 1 else f'{times} times'}" if times else ""
        restarts += f" ({one.tunnel.lost})" if one.tunnel.lost else ""
        since = human_duration(time.time() - one.tunnel.since)
        uses = ", ".join(one.tunnel.features) or "no offloads"
        yield f"  tunnel    process {one.tunnel.pid} for {since}{restarts}, uses {uses}"
    if one.store:
        yield f"  store     {one.store}" + ("" if one.connected else ", away")
    for problem in one.problems:
        yield f"  ✗ {problem}"


def _print_peers(peers: Sequence[PeerStatus], *, wide: bool) -> None:
    if not peers:
        return
    headers = ["PEER", "SUBNETS", "PATH", "SINCE", "RTT", "WHY"]
    if wide:
        headers[3:3] = ["VIA"]
        headers[-1:-1] = ["HEARD", "HANDSHAKE"]
    rows = [row for peer in peers for row in _rows(peer, wide=wide)]
    print()
    printing.print_table(headers, [[clean(cell) for cell in row] for row in rows])


def _rows(peer: PeerStatus, *, wide: bool) -> Iterator[list[str]]:
    subnets = ",".join(peer.subnets)
    if not wide and len(peer.subnets) > 2:
        subnets = f"{peer.subnets[0]} and {len(peer.subnets) - 1} more"
    if not peer.paths:
        more = ["", "", ""] if wide else []
        why = "; ".join(peer.objections) or "no way is known"
        yield [peer.node, subnets, "none", "", "", *more, why]
    for path in peer.paths:
        row = [peer.node, subnets, _kind(peer, path), _ago(time.time() - path.since), _rtt(path)]
        if wide:
            row[3:3] = [path.via]
            row += [_ago(peer.heard_s), _ago(peer.handshake_s)]
        yield [*row, path.reason]


def _kind(peer: PeerStatus, path: PathStatus) -> str:
    """With two families, first whose packets these are; what carries them, if it is the other."""
    families = {":" in subnet for subnet in peer.subnets}
    pods = f"IPv{path.version}: " if len(families) > 1 else ""
    kind = f"{pods}{path.kind}{over(path.version, path.via)}"
    return f"{kind}, encrypted" if path.kind == "udp" and peer.encrypted else kind


def _rtt(path: PathStatus) -> str:
    return f"{path.rtt_us / 1000:.2f} ms" if path.rtt_us is not None else ""


def _ago(seconds: float | None) -> str:
    return human_duration(seconds) if seconds is not None else ""


def _drops(one: NodeStatus) -> Iterator[str]:
    found = [drop for drop in one.drops if drop.packets]
    if found:
        yield ""
    for drop in found:
        yield f"  dropped {drop.packets}: {drop.meaning or drop.reason} ({drop.reason})"
