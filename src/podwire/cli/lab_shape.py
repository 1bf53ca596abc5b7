"""What a lab is made with, as options; and which lab a command means.

What lives here: options and their reading. What they mean is `podwire.lab.shape`'s.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from podwire.cli.context import target
from podwire.cli.fabrics import chosen_fabric
from podwire.cli.options import DURATION

if TYPE_CHECKING:
    from podwire.lab.registry import LabInfo
    from podwire.lab.shape import Shape

Command = TypeVar("Command", bound=Callable[..., Any])

#: Parameters of `podwire agent` by which a lab's agents, kubelets and commands find each other.
_LABS_OWN = frozenset(
    {"node_name", "kubeconfig", "run_dir", "state_dir", "cni_conf_dir", "cni_bin_dir"}
)
_FAMILY = click.Choice(["ipv4", "ipv6", "dual"])

_OPTIONS = (
    click.option(
        "--network",
        metavar="CIDR",
        help="The pod network; one CIDR, or one of each family with a comma."
        "  [default: the profile's]",
    ),
    click.option("--family", type=_FAMILY, help="Of pods and nodes.  [default: ipv4]"),
    click.option(
        "--underlay",
        type=click.Choice(["l2", "routed"]),
        help="All nodes on one link, or by turns on two with a router between.  [default: l2]",
    ),
    click.option(
        "--underlay-family",
        type=_FAMILY,
        help="Of nodes, where it is not that of pods.",
    ),
    click.option(
        "--store",
        type=click.Choice(["kube", "etcd"]),
        help="Where agents keep their leases: in the API, or in an etcd that the lab then runs."
        "  [default: kube]",
    ),
    click.option(
        "--node-grace",
        type=DURATION,
        metavar="DURATION",
        help="A node that is silent for so long is NotReady.  [default: 40s]",
    ),
    click.option(
        "--agent-option",
        "agent_options",
        multiple=True,
        metavar="OPTION",
        help="A further option for each `podwire agent`; may be given again.",
    ),
)


def shape_options(command: Command) -> Command:
    """Give a command all of them, beside those of the fabric; read them with `chosen_shape`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_shape(options: Mapping[str, Any]) -> Shape | None:
    """What a command was given; None where that is nothing. Raises InputError."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if not given:
        return None
    from podwire.lab.shape import shape

    network = {
        name: given.pop(name)
        for name in ("network", "family", "underlay", "underlay_family", "store")
        if name in given
    }
    words = tuple(word for text in given.pop("agent_options", ()) for word in shlex.split(text))
    _check_agent_options(words)
    grace_s = given.pop("node_grace", None)
    return shape(**network, agent_options=words, node_grace_s=grace_s, **fabric_choices(given))


def fabric_choices(given: Mapping[str, Any]) -> dict[str, Any]:
    """The choices of a fabric that its options mean. Raises InputError."""
    import msgspec

    options = chosen_fabric(**given)
    return {
        name: value for name, value in msgspec.structs.asdict(options).items() if value is not None
    }


def _check_agent_options(words: tuple[str, ...]) -> None:
    """Raises UsageError where `podwire agent` would."""
    from podwire.cli.agent import agent

    try:
        context = agent.make_context("podwire agent", list(words))
    except click.UsageError as error:
        raise click.BadParameter(error.format_message(), param_hint="--agent-option") from error
    if context.args or context._protected_args:
        raise click.BadParameter(f"{shlex.join(words)!r} is no option", param_hint="--agent-option")
    for option in agent.params:
        source = context.get_parameter_source(option.name or "")
        if source is not ParameterSource.COMMANDLINE:
            continue
        name = option.opts[0]
        if option.name in _LABS_OWN:
            raise click.BadParameter(
                f"{name} is for the lab to say to its agents", param_hint="--agent-option"
            )
        if option.name in {"network", "store", "block_size"} | _fabric_options():
            raise click.BadParameter(
                f"{name} is about the lab; give it without --agent-option",
                param_hint="--agent-option",
            )


def _fabric_options() -> set[str]:
    import msgspec

    from podwire.agent.fabrics import FabricOptions

    return {field.name for field in msgspec.structs.fields(FabricOptions)}


def resolve() -> LabInfo:
    """The lab that this command means."""
    from podwire.lab import registry

    return registry.resolve(target().lab)
