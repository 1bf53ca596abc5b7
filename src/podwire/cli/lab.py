"""`podwire lab`: make, look at and remove clusters on this machine.

What lives here: arguments, and words on the terminal. What happens is `podwire.lab`'s.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from podwire.cli.context import target, target_options

if TYPE_CHECKING:
    from podwire.lab.control import Snapshot
    from podwire.lab.registry import LabInfo

_CLEAR_LINE = "\r\x1b[K"


class TerminalProgress:
    """Steps as lines; on a terminal also what is being waited for, on a line that is replaced."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._coloured = self._live and not os.environ.get("NO_COLOR")
        self._started = time.monotonic()

    def done(self, text: str) -> None:
        mark = click.style("✓", fg="green") if self._coloured else "✓"
        clear = _CLEAR_LINE if self._live else ""
        seconds = f"{time.monotonic() - self._started:5.1f} s"
        print(f"{clear}{seconds}  {mark} {text}", file=sys.stderr, flush=True)

    def waiting(self, text: str) -> None:
        if self._live:
            seconds = f"{time.monotonic() - self._started:5.1f} s"
            print(f"{_CLEAR_LINE}{seconds}  … {text}", end="", file=sys.stderr, flush=True)


@click.group()
def lab() -> None:
    """Make, list and remove clusters on this machine.

    A lab's nodes are network namespaces joined by an underlay, each with its own agent and
    kubelet, in front of them a Kubernetes API. It takes no image and no container runtime.
    """


@lab.command()
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many nodes a new lab gets.  [default: 3]",
)
@click.option("--name", default="lab", show_default=True, metavar="NAME", help="Name of the lab.")
def up(nodes: int | None, name: str) -> None:
    """Make a lab, or start again one that has stopped."""
    from podwire.lab import lifecycle

    started = time.monotonic()
    info = lifecycle.up(name, nodes, TerminalProgress())
    record = info.record()
    count = len(record.nodes) if record else 0
    option = "" if _only_lab(info) else f"--lab {name} "
    print(
        f'Lab "{name}" is up: {count} node{"s" if count != 1 else ""},'
        f" in {time.monotonic() - started:.1f} s.\n"
        f"  podwire {option}get nodes\n"
        f"  export KUBECONFIG={info.kubeconfig}    # for kubectl\n"
        f"  podwire lab down {name}"
    )


def _only_lab(info: LabInfo) -> bool:
    from podwire.lab import registry

    return [other.name for other in registry.list_labs()] == [info.name]


@lab.command()
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Remove all labs of this machine.")
@target_options
def down(name: str | None, every: bool) -> None:
    """Remove a lab with everything in it (NAME, --lab, or the only one there is)."""
    from podwire.lab import lifecycle, registry

    if every and name:
        raise click.UsageError("give NAME or --all, not both")
    progress = TerminalProgress()
    # Not by registry.resolve: of a lab whose directory is lost, namespaces may be left to remove.
    names = [info.name for info in registry.list_labs()] if every else [name or _resolve().name]
    for each in names:
        progress.waiting(f'removing lab "{each}"')
        lifecycle.down(each, progress)
    if not names:
        print("There is no lab on this machine.")


def _resolve() -> LabInfo:
    from podwire.lab import registry

    return registry.resolve(target().lab)


@lab.command("list")
def list_() -> None:
    """List the labs of this machine."""
    from podwire.cli.printing import Table, human_duration
    from podwire.lab import registry, teardown

    labs = registry.list_labs()
    if not labs:
        print("There is no lab on this machine; make one with `podwire lab up`.")
        return
    rows = []
    for info in labs:
        record = info.record()
        running = teardown.supervisor(info) is not None
        rows.append(
            (
                info.name,
                ("up" if running else "stopped") if record else "incomplete",
                str(len(record.nodes)) if record else "-",
                human_duration(time.time() - record.created) if record else "-",
                f"https://127.0.0.1:{record.api_port}" if record and running else "-",
            )
        )
    table = Table(("NAME", "STATUS", "NODES", "AGE", "API"))
    table.print(rows)


@lab.command()
@target_options
def status() -> None:
    """Show the processes of a lab; exit status 1 when not all is well."""
    from podwire.lab.control import Control

    info = _resolve()
    with Control(info) as control:
        snapshot = control.request("status")
    _print_status(info, snapshot)
    if not snapshot.ready:
        sys.exit(1)


def _print_status(info: LabInfo, snapshot: Snapshot) -> None:
    from podwire.cli.printing import Table, human_duration

    record = info.record()
    if record is not None:
        print(
            f"lab {info.name}: {len(record.nodes)} nodes, API https://127.0.0.1:{record.api_port}"
        )
        addresses = ", ".join(f"{node.name} {node.address}" for node in record.nodes[:8])
        print(f"underlay 172.18.0.0/16: {addresses}{', …' if len(record.nodes) > 8 else ''}\n")
    table = Table(("PROCESS", "STATUS", "PID", "RESTARTS", "AGE", "MESSAGE"))
    table.print(
        (
            process.name,
            process.state,
            str(process.pid or "-"),
            str(process.restarts),
            human_duration(time.time() - process.since),
            process.message,
        )
        for process in snapshot.processes
    )


@lab.command()
@target_options
def kubeconfig() -> None:
    """Print the line that points kubectl at a lab: eval "$(podwire lab kubeconfig)"."""
    print(f"export KUBECONFIG={_resolve().kubeconfig}")


@lab.group()
def node() -> None:
    """Add and remove nodes."""


@node.command("add")
@target_options
def node_add() -> None:
    """Add a node to a running lab."""
    from podwire.lab import lifecycle

    added = lifecycle.add_node(_resolve(), TerminalProgress())
    print(f"{added.name} ({added.address}) is ready.")


@node.command("remove")
@click.argument("node_name", metavar="NODE")
@target_options
def node_remove(node_name: str) -> None:
    """Remove a node and its pods from a running lab."""
    from podwire.lab import lifecycle

    lifecycle.remove_node(_resolve(), node_name, TerminalProgress())


@lab.command()
@click.argument("process")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is written.")
@target_options
def logs(process: str, follow: bool) -> None:
    """Print the log of a lab's PROCESS: api, supervisor, node1/agent, node1/kubelet, …"""
    from podwire.errors import LabError

    info = _resolve()
    path: Path = info.log(process)
    if not path.is_file():
        known = sorted(file.stem for file in (info.dir / "log").glob("*.log"))
        names = ", ".join(name.replace("-", "/", 1) for name in known)
        raise LabError(f'lab "{info.name}" has no process "{process}"', remedy=f"it has {names}")
    command = ["tail", "-n", "+1", *(["-f"] if follow else []), str(path)]
    sys.stdout.flush()
    os.execvp("tail", command)


# Options stand before NODE: all that follows is the command's.
@lab.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("node_name", metavar="NODE")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@target_options
def shell(node_name: str, command: tuple[str, ...]) -> None:
    """Run a shell, or COMMAND, inside a node."""
    from podwire.lab import enter

    if command[:1] == ("--",):
        command = command[1:]  # click keeps it, since options after NODE are the command's
    argv = enter.node_command(_resolve(), node_name, command or (_shell(),))
    sys.stdout.flush()
    os.execvp(argv[0], argv)


def _shell() -> str:
    return os.environ.get("SHELL", "/bin/sh")
