"""`podwire lab`: make, look at and remove clusters on this machine.

What lives here: arguments, and words on the terminal. What happens is `podwire.lab`'s. Faults are
in `lab_faults`, a change of the network in `lab_change`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from podwire.cli.context import target_options
from podwire.cli.fabrics import fabric_options
from podwire.cli.lab_change import set_profile
from podwire.cli.lab_faults import heal, kill, partition
from podwire.cli.lab_shape import chosen_shape, resolve, shape_options
from podwire.cli.progress import TerminalProgress

if TYPE_CHECKING:
    from podwire.lab.control import Snapshot
    from podwire.lab.registry import LabInfo, LabRecord


@click.group()
def lab() -> None:
    """Make, list and remove clusters on this machine.

    A lab's nodes are network namespaces joined by an underlay, each with its own agent and
    kubelet, in front of them a Kubernetes API. It takes no image and no container runtime.
    """


@lab.command(
    epilog="""\b
Examples:
  podwire lab up                                             three nodes, Flannel's VXLAN
  podwire lab up --profile calico --family dual
  podwire lab up --profile calico-vxlan --cross-subnet --underlay routed
  podwire lab up --transport auto --agent-option=--probe-interval=0.2
  podwire lab up --name b --store etcd                       a second lab, leases in etcd
"""
)
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many nodes a new lab gets.  [default: 3]",
)
@click.option("--name", default="lab", show_default=True, metavar="NAME", help="Name of the lab.")
@fabric_options
@shape_options
def up(nodes: int | None, name: str, **options: Any) -> None:
    """Make a lab, or start again one that has stopped.

    A new lab gets a pod network as the options say; one that exists keeps its own.
    """
    from podwire.lab import lifecycle

    started = time.monotonic()
    info = lifecycle.up(name, nodes, TerminalProgress(), chosen_shape(options))
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
    names = [info.name for info in registry.list_labs()] if every else [name or resolve().name]
    for each in names:
        progress.waiting(f'removing lab "{each}"')
        lifecycle.down(each, progress)
    if not names:
        print("There is no lab on this machine.")


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
    """Show a lab's network, faults and processes; exit status 1 when not all is well."""
    from podwire.lab.control import Control

    info = resolve()
    with Control(info) as control:
        snapshot = control.request("status")
    _print_status(info, snapshot)
    if not snapshot.ready or snapshot.faults:
        sys.exit(1)


def _print_status(info: LabInfo, snapshot: Snapshot) -> None:
    from podwire.cli.printing import Table, human_duration

    record = info.record()
    if record is not None:
        _print_shape(record)
    for sentence in snapshot.faults.sentences():
        print(sentence)
    if snapshot.faults:
        print(f"undo it with: podwire --lab {info.name} lab heal\n")
    table = Table(("PROCESS", "STATUS", "PID", "RESTARTS", "AGE", "MESSAGE"))
    table.print(
        (
            process.name,
            process.state,
            str(process.pid or "-"),
            str(process.restarts),
            human_duration(time.time() - process.since),
            process.message or ("runs with options of before" if process.stale else ""),
        )
        for process in snapshot.processes
    )


def _print_shape(record: LabRecord) -> None:
    """What the lab is made of, three lines."""
    from podwire.lab.addressing import segments

    shape, nodes = record.shape, record.nodes
    fabric = shape.resolved
    networks = ", ".join(map(str, shape.network))
    links = segments(shape.underlay, shape.underlay_versions)
    on = " and ".join(", ".join(map(str, link.networks)) for link in links)
    addresses = ", ".join(f"{node.name} {' '.join(record.ips(node))}" for node in nodes[:8])
    more = ", …" if len(nodes) > 8 else ""
    print(
        f"lab {record.name}: {len(nodes)} nodes, API https://127.0.0.1:{record.api_port}\n"
        f"network {networks}: {fabric.profile}"
        f" ({fabric.ipam} × {fabric.wiring} × {fabric.transport})\n"
        f"underlay {on}: {addresses}{more}\n"
    )


@lab.command()
@target_options
def kubeconfig() -> None:
    """Print the line that points kubectl at a lab: eval "$(podwire lab kubeconfig)"."""
    print(f"export KUBECONFIG={resolve().kubeconfig}")


@lab.group()
def node() -> None:
    """Add and remove nodes."""


@node.command("add")
@target_options
def node_add() -> None:
    """Add a node to a running lab."""
    from podwire.lab import lifecycle
    from podwire.lab.readiness import existing

    info = resolve()
    added = lifecycle.add_node(info, TerminalProgress())
    record = existing(info)
    print(f"{added.name} ({record.ips(added)[0]}) is ready.")


@node.command("remove")
@click.argument("node_name", metavar="NODE")
@target_options
def node_remove(node_name: str) -> None:
    """Remove a node and its pods from a running lab."""
    from podwire.lab import lifecycle

    lifecycle.remove_node(resolve(), node_name, TerminalProgress())


@lab.command()
@click.argument("process")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is written.")
@target_options
def logs(process: str, follow: bool) -> None:
    """Print the log of a lab's PROCESS: api, supervisor, node1/agent, node1/kubelet, …"""
    from podwire.errors import LabError

    info = resolve()
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
    argv = enter.node_command(resolve(), node_name, command or (_shell(),))
    sys.stdout.flush()
    os.execvp(argv[0], argv)


def _shell() -> str:
    return os.environ.get("SHELL", "/bin/sh")


for _command in (partition, kill, heal, set_profile):
    lab.add_command(_command)
