"""Which cluster a command talks to.

What lives here: the options `--lab` and `--kubeconfig` and the one rule that turns them into a
`ClientConfig`. In order:

1. `--kubeconfig FILE`
2. `--lab NAME` or `PODWIRE_LAB`
3. the only lab on this machine (with several: an error that lists them)
4. no lab at all: what kubectl would use (`KUBECONFIG`, in-cluster, `~/.kube/config`)

The options may stand before or after the command; the nearer one wins. The lab package and the
client are imported when the answer is asked for, so that `podwire --help` costs neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from podwire.cluster.kube import ClientConfig, KubeClient
    from podwire.lab.registry import LabInfo

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass
class Target:
    """What the person said about which cluster they mean; `click`'s context object."""

    lab: str | None = None
    kubeconfig: Path | None = None

    def config(self) -> ClientConfig:
        """Where the API is and how to get in.

        Raises `LabError` (no such lab, or several and none named) and `InputError` (kubeconfig).
        """
        from podwire.cluster.kube import ClientConfig

        if self.kubeconfig is not None:
            return ClientConfig.from_kubeconfig(self.kubeconfig)
        info = self.lab_info()
        if info is not None:
            return ClientConfig.from_kubeconfig(info.kubeconfig)
        return ClientConfig.load(None)

    def lab_info(self) -> LabInfo | None:
        """The lab that is meant; None where it is another cluster. Raises `LabError`."""
        from podwire.lab import registry

        if self.kubeconfig is not None:
            return None
        name = self.lab or os.environ.get("PODWIRE_LAB") or None
        if name is None and not registry.list_labs():
            return None
        return registry.resolve(name)


def _remember(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(ctx.ensure_object(Target), attribute, value)

    return callback


def target_options(command: Command) -> Command:
    """Give a command `--lab` and `--kubeconfig`; read the answer with `target()`."""
    command = click.option(
        "--kubeconfig",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        expose_value=False,
        callback=_remember("kubeconfig"),
        help="Credentials of the cluster to talk to.",
    )(command)
    return click.option(
        "--lab",
        metavar="NAME",
        expose_value=False,
        callback=_remember("lab"),
        help="The lab to talk to (or PODWIRE_LAB; needed when there are several).",
    )(command)


def target() -> Target:
    """What the running command was told about its cluster."""
    return click.get_current_context().ensure_object(Target)


def with_client(work: Callable[[KubeClient], Coroutine[Any, Any, T]]) -> T:
    """Run `work` with a connected client for the command's cluster, and return its result."""
    import asyncio

    from podwire.cluster.kube import KubeClient

    config = target().config()

    async def connected() -> T:
        async with KubeClient(config) as client:
            return await work(client)

    return asyncio.run(connected())
