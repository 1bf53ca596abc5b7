"""By what this node keeps pods to their own addresses: a program at each port, or nftables.

What lives here: the choice, made once at the agent's start. What does not: the guards
(`podwire.plan.spoofing`), and whether the kernel takes programs (`podwire.kernel.features`).

A program hangs on a port's ingress qdisc, of which there is but one. The CNI plugin `bandwidth`
makes one for itself and fails where there is one, so where it is chained behind Podwire nftables
is chosen.
"""

from __future__ import annotations

import logging
from pathlib import Path

from podwire.agent.config import AgentConfig
from podwire.cni import install
from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import features
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


def shaping_list(config: AgentConfig) -> Path | None:
    """The CNI configuration that has another plugin limit what pods send, at their ports."""
    return install.chained_with("bandwidth", config.cni_conf_dir)
