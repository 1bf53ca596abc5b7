"""By what this node keeps pods to their own addresses: a program at each port, or nftables.

What lives here: the choice, made at the agent's start, and once more where its reason goes. What
does not: the guards (`podwire.plan.spoofing`), how the one kind takes the other's place
(`podwire.kernel.reconcile`), and whether the kernel takes programs (`podwire.kernel.features`).

A program hangs on a port's ingress qdisc, of which there is but one. The CNI plugin `bandwidth`
makes one for itself and fails where there is one, so where it is chained behind Podwire nftables
is chosen; also when it comes while the agent runs. When it goes nothing changes before the next
start: pods that it has limited still have its qdisc.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from podwire.agent.config import AgentConfig
from podwire.cni import install
from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import features
from podwire.kernel.inotify import ENTRIES, Watch
from podwire.log import fields
from podwire.model.fabric import Guard

log = logging.getLogger(__name__)


def choose(config: AgentConfig) -> Guard:
    """What was asked for; by itself programs, where this machine takes them and no other plugin
    needs their place. Blocks.

    Raises UnsupportedError where they were asked for and it does not.
    """
    if config.guard == "nftables" or not config.options.fabric().anti_spoofing:
        return "nftables"
    shaped = shaping_list(config)
    if shaped is not None and config.guard == "auto":
        log.info("anti-spoofing by nftables", extra=fields(bandwidth_in=str(shaped)))
        return "nftables"
    try:
        missing = features.guard_feature().missing
    except KernelError as error:
        missing = error.message
    if not missing:
        return "ebpf"
    if config.guard == "ebpf":
        raise UnsupportedError(
            f"--guard ebpf: this machine takes no programs at pods' ports: {missing}",
            remedy="leave the option out: nftables does the same, and costs packets a little more",
        )
    log.info("anti-spoofing by nftables", extra=fields(no_ebpf=missing))
    return "nftables"


async def until_shaped(config: AgentConfig) -> Path:
    """Wait until a CNI configuration has another plugin limit what pods send; its file.

    Raises OSError where the directory can't be watched.
    """
    directory = config.cni_conf_dir
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        # Anew each time: another directory may be in its place.
        watch = Watch(directory, ENTRIES)
        try:
            shaped = await asyncio.to_thread(shaping_list, config)
            if shaped is not None:
                return shaped
            await watch.changed.wait()
        finally:
            watch.close()


def shaping_list(config: AgentConfig) -> Path | None:
    """The CNI configuration that has another plugin limit what pods send, at their ports."""
    return install.chained_with("bandwidth", config.cni_conf_dir)
