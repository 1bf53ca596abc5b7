"""`podwire lab`: make, look at and remove clusters on this machine.

What lives here: arguments, and words on the terminal. What happens is `podwire.lab`'s. Faults are
in `lab_faults`, a change of the network in `lab_change`, what a lab looks like in `lab_looks`.
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
from podwire.cli.lab_looks import list_, status
from podwire.cli.lab_shape import chosen_shape, resolve, shape_options
from podwire.cli.progress import TerminalProgress

if TYPE_CHECKING:
    from podwire.lab.registry import LabInfo


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
    from podwire.lab import consequences, lifecycle

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
    if record and (note := consequences.out_of_reach(record.shape)) is not None:
        print(f"note: {note}.", file=sys.stderr)


def _only_lab(info: LabInfo) -> bool:
    from podwire.lab import registry

    return [other.name for other in registry.list_labs()] == [info.name]


@lab.command(
    short_help="Remove a lab with everything in it.",
    epilog="""\b
Examples:
  podwire lab down            the only lab there is
  podwire lab down b
  podwire lab down --all
""",
)
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


@lab.command(short_help="Print the line that points kubectl at a lab.")
@target_options
def kubeconfig() -> None:
    """Print the line that points kubectl at a lab.

    To have the shell do it: eval "$(podwire lab kubeconfig)".
    """
    print(f"export KUBECONFIG={resolve().kubeconfig}")


@lab.group()
def node() -> None:
    """Add and remove nodes."""


@node.command(
    "add",
    epilog="""\b
Example:
  podwire lab node add
""",
)
@target_options
def node_add() -> None:
    """Add a node to a running lab."""
    from podwire.lab import lifecycle
    from podwire.lab.readiness import existing

    info = resolve()
    added = lifecycle.add_node(info, TerminalProgress())
    record = existing(info)
    print(f"{added.name} ({record.ips(added)[0]}) is ready.")


@node.command(
    "remove",
    epilog="""\b
Example:
  podwire lab node remove node3
""",
)
@click.argument("node_name", metavar="NODE")
@target_options
def node_remove(node_name: str) -> None:
    """Remove a node and its pods from a running lab."""
    from podwire.lab import lifecycle

    lifecycle.remove_node(resolve(), node_name, TerminalProgress())


@lab.command(
    short_help="Print the log of one of a lab's processes.",
    epilog="""\b
Examples:
  podwire lab logs node1/agent
  podwire lab logs -f node2/kubelet
""",
)
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
@lab.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""\b
Examples:
  podwire lab shell node1
  podwire lab shell node1 ip route
  podwire lab shell node2 tcpdump -ni eth0 udp port 8472
""",
)
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


for _command in (list_, status, partition, kill, heal, set_profile):
    lab.add_command(_command)
