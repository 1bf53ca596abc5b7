"""`podwire lab set-profile`: give a running lab another pod network.

What lives here: arguments, the question before it, and words on the terminal. What happens is
`podwire.lab.rollout`'s.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from podwire.cli.context import target_options
from podwire.cli.fabrics import fabric_options
from podwire.cli.lab_shape import fabric_choices, resolve
from podwire.cli.progress import TerminalProgress


@click.command(
    "set-profile",
    epilog="""\b
Examples:
  podwire lab set-profile flannel-host-gw
  podwire lab set-profile calico-vxlan --cross-subnet
  podwire lab set-profile --transport auto --yes
""",
)
@click.argument("name", metavar="[PROFILE]", required=False)
@fabric_options
@click.option("--yes", is_flag=True, help="Don't ask.")
@target_options
def set_profile(name: str | None, yes: bool, **fabric: Any) -> None:
    """Give a running lab another pod network, node by node.

    What is left open is the PROFILE's own; without one, it stays as it was. Says first what it
    interrupts, and asks, on a terminal. Pods keep their addresses where these are handed out as
    before.
    """
    from podwire.lab import rollout
    from podwire.lab.readiness import existing
    from podwire.lab.shape import changed, differences

    if name is not None and fabric["profile"] is not None:
        raise click.UsageError("give PROFILE or --profile, not both")
    if name is not None:
        fabric["profile"] = name
    if not any(value is not None for value in fabric.values()):
        raise click.UsageError("name a profile, or what is to be different")
    info = resolve()
    before = existing(info).shape
    after = changed(before, fabric_choices(fabric))
    found = differences(before, after)
    if found:
        print("\n".join([*found, *rollout.consequences(before, after)]))
        if sys.stdin.isatty() and not yes:
            click.confirm("Go on?", abort=True)
    rollout.set_shape(info, after, TerminalProgress())
    new = after.resolved
    print(f'Lab "{info.name}": {new.profile} ({new.ipam} × {new.wiring} × {new.transport}).')
