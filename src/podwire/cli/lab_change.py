"""`podwire lab set-profile`: give a running lab another pod network.

What lives here: arguments, the question before it, and words on the terminal. What happens is
`podwire.lab.rollout`'s.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from podwire.cli.context import target_options
from podwire.cli.fabrics import fabric_options
from podwire.cli.lab_shape import fabric_choices, resolve
from podwire.cli.progress import TerminalProgress

if TYPE_CHECKING:
    from podwire.lab.registry import LabInfo, LabRecord
    from podwire.lab.shape import Shape


@click.command(
    "set-profile",
    short_help="Give a running lab another pod network, node by node.",
    epilog="""\b
Examples:
  podwire lab set-profile flannel-host-gw
  podwire lab set-profile calico-vxlan --cross-subnet
  podwire lab set-profile --transport auto --yes
  podwire lab set-profile calico --dry-run              only say what it would interrupt
  podwire lab set-profile calico --network 10.244.0.0/16   pods may keep their addresses
""",
)
@click.argument("name", metavar="[PROFILE]", required=False)
@fabric_options
@click.option(
    "--network",
    metavar="CIDR",
    help="The pod network, for an IPAM that the lab has not had yet; one CIDR for each family of"
    " the lab, with a comma.  [default: the profile's]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be interrupted, and change nothing.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@target_options
def set_profile(
    name: str | None, network: str | None, dry_run: bool, yes: bool, **fabric: Any
) -> None:
    """Give a running lab another pod network, node by node.

    What is left open is the PROFILE's own; without one, it stays as it was. Says first what it
    interrupts, and asks. Pods keep their addresses where these are handed out as before.
    """
    from podwire.lab import consequences, rollout
    from podwire.lab.readiness import existing
    from podwire.lab.shape_change import changed, differences

    if name is not None and fabric["profile"] is not None:
        raise click.UsageError("give PROFILE or --profile, not both")
    if name is not None:
        fabric["profile"] = name
    if network is None and not any(value is not None for value in fabric.values()):
        raise click.UsageError("name a profile, or what is to be different")
    info = resolve()
    # Not while another command changes it: what is said would be about what was before.
    with rollout.locked(info, TerminalProgress()):
        record = existing(info)
        after = changed(record.shape, fabric_choices(fabric), network)
        found = differences(record.shape, after)
        if found:
            consequences.check_reachable(record)
            _tell(info, record, after, found)
    if dry_run:
        if not found:
            print(f'Lab "{info.name}" is so already.')
        return
    if found and not yes:
        _ask()
    try:
        rollout.set_shape(info, after, TerminalProgress())
    except KeyboardInterrupt:
        print(f"interrupted; `podwire lab up --name {info.name}` goes on with it", file=sys.stderr)
        raise
    new = after.resolved
    print(f'Lab "{info.name}": {new.profile} ({new.ipam} × {new.wiring} × {new.transport}).')


def _tell(info: LabInfo, record: LabRecord, after: Shape, found: list[str]) -> None:
    """What will be different, and what is interrupted for it."""
    from podwire.lab import consequences, running

    print("\n".join(found))
    pods = [pod.name for pod in running.pods(info)]
    for sentence in consequences.consequences(record.shape, after, pods):
        print(f"- {sentence}")
    if (note := consequences.out_of_reach(after)) is not None:
        print(f"- Note: {note}.")
    for name in record.faults.dead:
        print(f"- {name} is dead, and changes when it is healed.")


def _ask() -> None:
    """Ends the command where the answer is not yes, or nobody answers."""
    from podwire.errors import InputError

    try:
        click.confirm("Go on?", abort=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise InputError(
            "nobody said yes on standard input", field="yes", remedy="give --yes where nobody can"
        ) from None
