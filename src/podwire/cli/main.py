"""The `podwire` command: its subcommands by name, and how errors become exit codes.

What lives here: the table of subcommands, the group that imports one only when it is used (so
that `podwire --help` and shell completion stay instant), and the outermost error handling. What
does not: any command.

Exit codes: 0 done, 1 the thing failed (`error:` and perhaps `hint:` on standard error; without a
word when nobody reads our output any more), 2 the command line was wrong, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from podwire import __version__
from podwire.cli.context import Target, target_options
from podwire.cli.printing import colour_enabled
from podwire.errors import PodwireError

INTERRUPTED = 130
"""128 + SIGINT, what a shell reports for a command ended by Ctrl-C."""

COMMANDS: dict[str, tuple[str, str]] = {
    "lab": ("podwire.cli.lab:lab", "Make, list and remove clusters on this machine."),
    "apply": ("podwire.cli.apply:apply", "Create or update objects from manifests."),
    "get": ("podwire.cli.get:get", "List objects, or show some by name."),
    "describe": ("podwire.cli.describe:describe", "Show an object in full, with its events."),
    "delete": ("podwire.cli.delete:delete", "Delete objects by name, label or manifest."),
    "wait": ("podwire.cli.wait:wait", "Wait until objects meet a condition."),
    "exec": ("podwire.cli.exec:exec_", "Run a command in a pod's container."),
    "logs": ("podwire.cli.logs:logs", "Print what a pod's container wrote."),
    "trace": ("podwire.cli.trace:trace", "Show each hop of a packet, and why it went there."),
    "explain": ("podwire.cli.explain:explain", "Say what an entry or address is, and what for."),
    "doctor": ("podwire.cli.doctor:doctor", "Examine nodes, and mend what is wrong."),
    "capture": ("podwire.cli.capture:capture", "Capture at all interfaces of pods and nodes."),
    "status": ("podwire.cli.status:status", "Show nodes' fabric, and the ways to their peers."),
    "plan": ("podwire.cli.plan:plan", "Show a node's desired network and the difference to it."),
    "agent": ("podwire.cli.agent:agent", "Run the node agent, or tell one what to do."),
    "cni": ("podwire.cli.cni:cni", "Install the CNI plugin on this host."),
    "teardown": ("podwire.cli.teardown:teardown", "Remove all that the agent made on this host."),
}
"""Name → (`module:attribute` of the click command, one line for `--help`), in help's order."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are invoked or completed, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module_name, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module_name), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""
    \b
    Examples:
      podwire lab up                          three nodes on this machine
      podwire apply -f examples/two-pods.yaml
      podwire get pods -o wide
      podwire exec pod1 -- ping -c 3 10.244.1.2
      podwire trace pod1 pod2
      podwire lab down
    """,
)
@target_options
@click.version_option(__version__, prog_name="podwire")
@click.pass_context
def podwire(ctx: click.Context) -> None:
    """The pod network you can see through.

    Runs the network of Kubernetes pods, on a real cluster or in a lab on this machine, and shows
    each entry that carries a packet and why it is there.
    """
    ctx.ensure_object(Target)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (the process's own when None) and return its exit code."""
    try:
        outcome = podwire.main(arguments, prog_name="podwire", standalone_mode=False)
        sys.stdout.flush()
    except PodwireError as error:
        report(error)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # From the last flush; click answers those before it alike. What is still buffered would
        # raise once more when the interpreter shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return outcome if isinstance(outcome, int) else 0


def report(error: PodwireError) -> None:
    """Print an error for a person: what went wrong, and what to do about it."""
    from podwire.trace.render.ink import clean

    coloured = colour_enabled(sys.stderr)
    for label, colour, text in (("error:", "red", error.message), ("hint:", "cyan", error.remedy)):
        if text:
            shown = click.style(label, fg=colour) if coloured else label
            # Messages may quote what others wrote; no terminal is to obey that.
            print(shown, "\n".join(map(clean, text.split("\n"))), file=sys.stderr)


def main() -> None:
    """Entry point of the `podwire` executable."""
    sys.exit(run())
