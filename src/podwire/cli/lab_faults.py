"""`podwire lab partition`, `kill` and `heal`: break a lab on purpose.

What lives here: arguments, and words on the terminal. What happens is `podwire.lab.disruption`'s.
"""

from __future__ import annotations

import click

from podwire.cli.context import target_options
from podwire.cli.lab_shape import resolve
from podwire.cli.progress import TerminalProgress

_PORT = click.IntRange(1, 65535)


@click.command(
    short_help="Cut nodes off from each other, or from the API.",
    epilog="""\b
Examples:
  podwire lab partition node1 node3             nothing passes between the two
  podwire lab partition node1                   node1 reaches no other node
  podwire lab partition node1 node2 --udp 8472  only VXLAN does not pass
  podwire lab partition --api node1             its agent and kubelet lose the API
""",
)
@click.argument("node")
@click.argument("others", metavar="[OTHER]…", nargs=-1)
@click.option("--udp", type=_PORT, metavar="PORT", help="Drop only UDP packets to this port.")
@click.option("--tcp", type=_PORT, metavar="PORT", help="Drop only TCP packets to this port.")
@click.option("--api", is_flag=True, help="From the API (and etcd), and from no other node.")
@target_options
def partition(
    node: str, others: tuple[str, ...], udp: int | None, tcp: int | None, api: bool
) -> None:
    """Have the underlay drop what passes between NODE and OTHER nodes, or all others.

    Both ways, until it is healed. May be run again for further pairs.
    """
    from podwire.lab import disruption

    if udp is not None and tcp is not None:
        raise click.UsageError("give --udp or --tcp, not both; run the command twice")
    info = resolve()
    disruption.partition(
        info,
        node,
        others,
        protocol="udp" if udp is not None else "tcp" if tcp is not None else None,
        port=udp or tcp or 0,
        api=api,
        progress=TerminalProgress(),
    )
    _print_faults()


@click.command(
    short_help="Have nodes, or the API, die at once.",
    epilog="""\b
Examples:
  podwire lab kill node2
  podwire lab kill api           the cluster without its API
""",
)
@click.argument("names", metavar="NODE…", nargs=-1, required=True)
@target_options
def kill(names: tuple[str, ...]) -> None:
    """Have nodes die: processes are killed at once, the link is gone, the disk stays.

    Also `api`, and `etcd` in a lab that has one. They stay dead until they are healed.
    """
    from podwire.lab import disruption

    disruption.kill(resolve(), names, progress=TerminalProgress())
    _print_faults()


@click.command(
    short_help="Undo partitions and deaths.",
    epilog="""\b
Examples:
  podwire lab heal                                everything
  podwire lab heal node2                          node2 boots, and reaches all others
  podwire lab heal node2 --address 172.18.0.99    it boots with another address
""",
)
@click.argument("names", metavar="[NODE]…", nargs=-1)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="IP",
    help="The address on the underlay that a dead node comes back with; one a family.",
)
@target_options
def heal(names: tuple[str, ...], addresses: tuple[str, ...]) -> None:
    """Undo partitions and deaths of nodes (or `api`, `etcd`), or all there are.

    Waits until what was dead is ready again (nodes boot as machines do, with their disk) and agents
    follow their store.
    """
    from podwire.lab import disruption

    disruption.heal(resolve(), names, addresses=addresses, progress=TerminalProgress())
    _print_faults()


def _print_faults() -> None:
    """What is wrong now."""
    from podwire.lab.readiness import existing

    faults = existing(resolve()).faults
    print("\n".join(faults.sentences()) or "Nothing is dead, and nothing cut off.")
