"""`podwire trace`: send a probe, and show each hop that it took.

What lives here: arguments, and which face of the trace is printed. What does not: who is meant
(`ends`), the way to the agents (`agents`), the trace itself (`podwire.trace.session`).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

import click

from podwire.cli import options
from podwire.cli.context import target_options

if TYPE_CHECKING:
    from podwire.cli.agents import Agents
    from podwire.model.probe import Probe, Protocol
    from podwire.trace.session import Traced

#: Sooner than that, a person does not wonder.
_PROGRESS_AFTER_S = 1.0
_MAX_WIDTH = 120


@click.command(
    short_help="Show each hop of a packet, and why it went there.",
    epilog="""
    \b
    Examples:
      podwire trace pod1 pod2
      podwire trace shop/web node/node2 --proto tcp --port 22
      podwire trace pod1 192.0.2.7 --count 3 --full
      podwire trace pod1 pod2 --size 1450 -o svg > packet.svg
    """,
)
@click.argument("src", metavar="SRC")
@click.argument("dst", metavar="DST")
@click.option(
    "--proto",
    type=click.Choice(["icmp", "tcp", "udp"]),
    default="icmp",
    show_default=True,
    help="What kind of probe.",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), metavar="PORT", help="The target's, of TCP and UDP."
)
@click.option(
    "--size",
    type=click.IntRange(36, 65535),
    metavar="BYTES",
    help="Length of the IP packet, headers included.  [default: 84, as ping's]",
)
@click.option(
    "--count",
    type=click.IntRange(1, 1000),
    metavar="N",
    default=1,
    show_default=True,
    help="How many probes are sent.",
)
@click.option(
    "--family", type=click.Choice(["4", "6"]), help="IPv4 or IPv6.  [default: what both have]"
)
@click.option(
    "--timeout",
    type=options.DURATION,
    default="500ms",
    show_default=True,
    help="How long each probe may remain unanswered.",
)
@click.option("--full", is_flag=True, help="Show the answer's hops one by one, too.")
@click.option(
    "-o",
    "output",
    type=click.Choice(["text", "json", "svg", "pcapng"]),
    default="text",
    show_default=True,
    help="For a person, as data, as a picture, or for Wireshark.",
)
@options.namespace_option
@target_options
@click.pass_context
def trace(
    ctx: click.Context,
    src: str,
    dst: str,
    proto: str,
    port: int | None,
    size: int | None,
    count: int,
    family: str | None,
    timeout: float,
    full: bool,
    output: str,
    namespace: str | None,
) -> None:
    """Send a real packet from SRC to DST, and show each hop of it and of its answer.

    SRC is a pod (NAME or NAMESPACE/NAME) or a node, DST a pod, a node or an IP address; pod/NAME
    and node/NAME tell apart what has the same name. Exit code 0 says that every probe was
    answered.
    """
    if proto == "icmp" and port is not None:
        raise click.UsageError("--port: ICMP has no ports; add --proto tcp or --proto udp")
    if proto != "icmp" and port is None:
        raise click.UsageError(f"--proto {proto} needs --port")
    if proto == "tcp" and size is not None:
        raise click.UsageError("--size: a TCP probe is a SYN, which has no size to choose")
    if not 0.001 <= timeout <= 60:
        raise click.BadParameter("from 1ms to 60s", param_hint="--timeout")
    if output == "pcapng" and sys.stdout.isatty():
        raise click.UsageError("-o pcapng is not for a terminal: redirect it, or pipe it on")
    from podwire.model.probe import Probe

    probe = Probe(
        protocol=cast("Protocol", proto),
        target="",
        port=port,
        size=size,
        count=count,
        timeout_s=timeout,
    )
    traced = asyncio.run(_trace(src, dst, namespace, int(family) if family else None, probe))
    _show(traced, output, full)
    ctx.exit(0 if traced.trace.ok else 1)


async def _trace(
    src: str, dst: str, namespace: str | None, family: int | None, probe: Probe
) -> Traced:
    from podwire.cli.agents import agents

    async with _progress(f"tracing {src} → {dst}"), agents() as them:
        return await _between(them, src, dst, namespace, family, probe)


async def _between(
    them: Agents, src: str, dst: str, namespace: str | None, version: int | None, probe: Probe
) -> Traced:
    import msgspec

    from podwire.cli import ends
    from podwire.errors import AgentAwayError, InputError
    from podwire.trace import session
    from podwire.trace.evidence import Facts
    from podwire.trace.facts import read_nodes

    client = them.client
    space = namespace or client.config.namespace
    words = ends.parse(src, "SRC", space), ends.parse(dst, "DST", space)
    if words[0].kind == "address":
        raise InputError(
            "a source is a pod or a node, and no address",
            field="SRC",
            remedy=f"podwire explain ip {src} tells whose it is",
        )
    nodes, source, target = await asyncio.gather(
        read_nodes(client),
        ends.find(client, words[0], "SRC"),
        ends.find(client, words[1], "DST"),
    )
    ips = ends.family(source, target, version)
    if ips[0] == ips[1]:
        raise InputError(f"{target} is the source itself", field="DST", remedy="name another")
    facts = Facts(nodes=nodes, pods=tuple(one.pod for one in (source, target) if one.pod))
    owner = facts.node_at(ips[1]) if target.kind == "address" else None
    end = target.at(ips[1])
    if owner is not None:
        end = msgspec.structs.replace(end, kind="node", name=owner.name, node=owner.name)
    probe = msgspec.structs.replace(probe, target=ips[1])
    try:
        notes = [
            f"pod {one.host_network} uses the network of its node {one.node}"
            for one in (source, target)
            if one.host_network
        ]
        return await session.run(them.dial, facts, source.at(ips[0]), end, probe, notes)
    except AgentAwayError as error:
        node = facts.node(source.node)
        if node is not None and not node.ready:
            raise AgentAwayError(
                f"{error.message}; node {node.name} is not ready", remedy=error.remedy
            ) from error
        raise


def _show(traced: Traced, output: str, full: bool) -> None:
    match output:
        case "text":
            from podwire.cli.printing import colour_enabled
            from podwire.trace.render.text import render_text

            width = min(shutil.get_terminal_size((100, 24)).columns, _MAX_WIDTH)
            text = render_text(traced.trace, colour=colour_enabled(), width=width, full=full)
            click.echo(text, nl=False)
        case "json":
            from podwire.trace.render.json import render_json

            click.echo(render_json(traced.trace), nl=False)
        case "svg":
            from podwire.trace.render.svg import render_svg

            click.echo(render_svg(traced.trace), nl=False)
        case "pcapng":
            from podwire.trace.render.pcapng import render_pcapng

            sys.stdout.buffer.write(render_pcapng(*traced))


@contextlib.asynccontextmanager
async def _progress(text: str) -> AsyncIterator[None]:
    """Say what is going on, on a terminal, when it takes longer than a person expects."""
    if not sys.stderr.isatty():
        yield
        return
    said = False

    def say() -> None:
        nonlocal said
        said = True
        print(f"{text} …", end="", file=sys.stderr, flush=True)

    timer = asyncio.get_running_loop().call_later(_PROGRESS_AFTER_S, say)
    try:
        yield
    finally:
        timer.cancel()
        if said:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
