"""By what this node keeps pods to their own addresses: a program at each port, or nftables.

What lives here: the choice, made once at the agent's start. What does not: the guards
(`podwire.plan.spoofing`), and whether the kernel takes programs (`podwire.kernel.features`).
"""

from __future__ import annotations

import logging

from podwire.agent.config import AgentConfig
from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import features
from podwire.log import fields
from podwire.model.fabric import Guard

log = logging.getLogger(__name__)


def choose(config: AgentConfig) -> Guard:
    """What was asked for; by itself programs, where this machine takes them. Blocks.

    Raises UnsupportedError where they were asked for and it does not.
    """
    if config.guard == "nftables" or not config.options.fabric().anti_spoofing:
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
