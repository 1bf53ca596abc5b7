"""`podwire plan`: a node's desired state, and what the kernel differs in."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import click

from podwire.cli.context import target, target_options

_AGENT_SOCKET = "/run/podwire/agent.sock"


@click.command(
    epilog="""\b
Examples:
  podwire plan --node node1           what node1 of the lab should hold, and what differs
  podwire plan --node node1 --diff    only the difference, as ip, bridge and nft lines
  podwire plan                        the same for this host's own agent
  podwire plan -o json | jq .changes
"""
)
@click.option("--node", help="The node of the lab; without it, the agent of this host.")
@click.option("--diff", is_flag=True, help="Show only the difference.")
@click.option(
    "--kind",
    type=click.Choice(["link", "address", "neigh", "fdb", "route", "sysctl", "nft", "tc"]),
    help="Show only entries of this kind.",
)
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text")
@target_options
def plan(node: str | None, diff: bool, kind: str | None, output: str) -> None:
    """Show what a node's kernel should hold, each entry with its why, and what differs.

    The difference is printed as the lines that a person would type to mend it. Exit code 0 says
    that there is none, 1 that there is.
    """
    document = asyncio.run(_fetch(_socket(node)))
    if kind is not None:
        for part in ("desired", "changes"):
            document[part] = [one for one in document[part] if one["kind"] == kind]
    if output == "json":
        import json

        click.echo(json.dumps(document, indent=2))
    else:
        if not diff:
            _show_desired(document)
        _show_changes(document, kind)
        if document.get("held"):
            click.secho(
                f"{document['node']} is held: nothing is mended until `podwire agent resume`",
                fg="yellow",
            )
    sys.exit(1 if document["changes"] else 0)


def _show_desired(document: dict[str, Any]) -> None:
    """Entries under the reason that they exist for; this node's own reasons come first."""
    by_reason: dict[str, list[dict[str, str]]] = {}
    for one in document["desired"]:
        by_reason.setdefault(f"{one['object']} {one['reason']}", []).append(one)
    own = f"Node/{document['node']} "
    for reason in sorted(by_reason, key=lambda text: (not text.startswith(own), text)):
        click.secho(reason, bold=True)
        for one in by_reason[reason]:
            first, *more = one["entry"].split("\n")
            click.echo(f"  {one['kind']:<8}{first}")
            for line in more:
                click.echo(f"          {line}")
    click.echo()


def _show_changes(document: dict[str, Any], kind: str | None) -> None:
    changes = document["changes"]
    if not changes:
        part = f", as far as {kind} goes" if kind is not None else ""
        click.secho(f"{document['node']}: the kernel is as desired{part}", fg="green")
        return
    what = "change" if len(changes) == 1 else "changes"
    click.secho(f"{document['node']}: {len(changes)} {what} to make it as desired", fg="yellow")
    for one in changes:
        click.secho(f"# {one['object']} {one['reason']}".rstrip(), dim=True)
        click.echo(one["line"])


def _socket(node: str | None) -> Path:
    from podwire.errors import InputError
    from podwire.lab import registry

    if node is None:
        return Path(_AGENT_SOCKET)
    lab = registry.resolve(target().lab or os.environ.get("PODWIRE_LAB"))
    run = lab.nodes_dir / node / "run"
    if not run.is_dir():
        raise InputError(
            f"lab {lab.name} has no node {node!r}",
            field="--node",
            remedy="podwire get nodes lists them",
        )
    return run / "podwire" / "agent.sock"


async def _fetch(socket: Path) -> dict[str, Any]:
    import aiohttp

    from podwire.errors import PodwireError

    try:
        connector = aiohttp.UnixConnector(str(socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://agent/plan") as response,
        ):
            if response.status != 200:
                raise PodwireError(f"the agent answered {response.status} {response.reason}")
            document: dict[str, Any] = await response.json()
            return document
    except (OSError, aiohttp.ClientError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise PodwireError(
            f"no agent answers on {socket}: {reason}",
            remedy="is `podwire agent` running there? In a lab, name a node with --node",
        ) from error
