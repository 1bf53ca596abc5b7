"""`podwire doctor`: examine nodes, and mend what is wrong.

What lives here: arguments, which nodes are meant, and the exit code. What does not: how they are
examined (`examination`), how findings look (`findings`), and the checks (`podwire.agent.doctor`).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Collection
from typing import TYPE_CHECKING

import click

from podwire.agent.doctor.names import CHECKS
from podwire.cli.context import target_options
from podwire.errors import PodwireError

if TYPE_CHECKING:
    from podwire.cli.examination import NodeReport

#: Sooner than that, a person does not wonder.
_PROGRESS_AFTER_S = 1.0


@click.command(
    short_help="Examine nodes, and mend what is wrong.",
    epilog="\b\nExamples:\n"
    "  podwire doctor                           all nodes\n"
    "  podwire doctor --node node1 --fix        one, and apply what differs\n"
    "  podwire doctor --check mtu --check tunnel\n"
    "  podwire doctor -o json | jq '.nodes[].findings[] | select(.level != \"ok\")'\n"
    "\n\b\nChecks:\n" + "\n".join(f"  {name:<12}{what}" for name, what in CHECKS.items()),
)
@click.option("--node", "nodes", metavar="NODE", multiple=True, help="Only this node; repeatable.")
@click.option(
    "--check",
    "checks",
    type=click.Choice(list(CHECKS)),
    metavar="NAME",
    multiple=True,
    help="Only this check; repeatable.",
)
@click.option("--fix", is_flag=True, help="Apply the difference to the desired state.")
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text")
@target_options
@click.pass_context
def doctor(
    ctx: click.Context, nodes: tuple[str, ...], checks: tuple[str, ...], fix: bool, output: str
) -> None:
    """Examine nodes: is the kernel as desired, and does the host let the network work?

    All nodes of the lab or cluster, or this host where neither is named. Each difference is shown
    as the line that mends it. Exit code 0 says that all are healthy: warnings do not count.
    """
    from podwire.cli import findings

    reports = asyncio.run(_examine(nodes, checks, fix=fix))
    if output == "json":
        findings.print_json(reports)
    else:
        findings.print_text(reports)
    ctx.exit(0 if all(report.healthy for report in reports) else 1)


async def _examine(
    nodes: tuple[str, ...], checks: tuple[str, ...], *, fix: bool
) -> list[NodeReport]:
    from podwire.cli.agents import agents
    from podwire.cli.examination import HERE, examine

    async with agents() as them:
        chosen: list[str | None] = list(dict.fromkeys(nodes)) or await them.all_nodes()
        if not chosen:
            raise PodwireError("there is no node to examine", remedy="podwire get nodes lists them")
        waiting = {node or HERE for node in chosen}
        async with _progress(waiting):
            return await examine(them, chosen, checks, fix=fix, waiting=waiting)


@contextlib.asynccontextmanager
async def _progress(waiting: Collection[str]) -> AsyncIterator[None]:
    """Say on a terminal whom we are waiting for, where it takes long."""

    async def say() -> None:
        await asyncio.sleep(_PROGRESS_AFTER_S)
        while waiting:
            names = sorted(waiting)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            print(f"\r\033[Kexamining {', '.join(names[:3])}{more} …", end="", file=sys.stderr)
            sys.stderr.flush()
            await asyncio.sleep(_PROGRESS_AFTER_S)

    if not sys.stderr.isatty():
        yield
        return
    task = asyncio.create_task(say())
    try:
        yield
    finally:
        task.cancel()
        print("\r\033[K", end="", file=sys.stderr, flush=True)
