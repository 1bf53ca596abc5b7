"""The options that say which fabric it is, shared by all commands that take them.

What lives here: names, help and ranges. Which parts fit together is `podwire.plan.profiles`' to
say, when the fabric is made of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from podwire.agent.fabrics import FabricOptions

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--profile",
        metavar="NAME",
        help="flannel-vxlan, flannel-host-gw, flannel-udp, calico, calico-vxlan or weave."
        "  [default: flannel-vxlan]",
    ),
    click.option(
        "--ipam",
        metavar="NAME",
        help="Who hands out pods' addresses: node-subnet, blocks or cluster-range.",
    ),
    click.option("--wiring", metavar="NAME", help="Pod to its node: bridge or routed."),
    click.option(
        "--transport",
        metavar="NAME",
        help="Node to node: direct, vxlan, l2-vxlan, udp or auto.",
    ),
    click.option(
        "--cross-subnet/--no-cross-subnet",
        default=None,
        help="VXLAN only to nodes behind a router, plain routes to the others (DirectRouting).",
    ),
    click.option(
        "--vni",
        type=click.IntRange(1, (1 << 24) - 1),
        metavar="VNI",
        help="VXLAN network identifier; Flannel's devices are named after it."
        "  [default: the profile's, 1 in Flannel's]",
    ),
    click.option(
        "--vxlan-port",
        type=click.IntRange(1, 65535),
        metavar="PORT",
        help="UDP port of VXLAN; the same on all nodes.  [default: 8472 in Flannel's profiles]",
    ),
    click.option(
        "--learning/--no-learning",
        default=None,
        help="VXLAN devices learn MACs from what arrives.  [default: the profile's]",
    ),
    click.option(
        "--gbp/--no-gbp",
        default=None,
        help="Packets' marks travel in the VXLAN header (Group Based Policy).",
    ),
    click.option(
        "--mtu",
        type=click.IntRange(576, 65535),
        metavar="BYTES",
        help="Pods' MTU at most.  [default: what the underlay leaves]",
    ),
    click.option(
        "--udp-port",
        type=click.IntRange(1, 65535),
        metavar="PORT",
        help="Port of the udp transport; the same on all nodes.  [default: 8285]",
    ),
    click.option(
        "--encrypt/--no-encrypt",
        default=None,
        help="The udp transport encrypts, and refuses peers that do not.",
    ),
    click.option(
        "--hairpin/--no-hairpin",
        default=None,
        help="A pod's frames may go back to it, as through a Service.  [default: on]",
    ),
    click.option(
        "--promiscuous/--no-promiscuous",
        default=None,
        help="The bridge takes all frames, in place of hairpin.  [default: off]",
    ),
    click.option(
        "--isolate-host/--no-isolate-host",
        default=None,
        help="Pods and their own node can't talk to each other.  [default: off]",
    ),
    click.option(
        "--anti-spoofing/--no-anti-spoofing",
        default=None,
        help="A pod sends with its own addresses only.  [default: on]",
    ),
    click.option(
        "--block-size",
        metavar="LENGTH",
        help="Prefix length of the blocks of --ipam blocks; with a comma, of both families."
        "  [default: 26,122]",
    ),
)


def fabric_options(command: Command) -> Command:
    """Give a command all of them; read the answer with `chosen_fabric`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_fabric(*, block_size: str | None = None, **given: Any) -> FabricOptions:
    """What a command was given. Raises InputError where the parts don't fit together."""
    from podwire.agent.config import parse_block_size
    from podwire.agent.fabrics import FabricOptions

    lengths = parse_block_size(block_size) if block_size is not None else {}
    options = FabricOptions(**given, block_len=lengths.get(4), block_len6=lengths.get(6))
    options.fabric()
    return options
