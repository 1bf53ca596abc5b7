"""`podwire agent`: the daemon of a node, and what is said to one that runs.

What lives here: options and arguments. `podwire agent` alone runs the daemon; `hold`, `resume` and
`relay` talk to one. What is imported late is not for `relay`, which someone waits for.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from podwire.cli.context import target_options
from podwire.cli.fabrics import chosen_fabric, fabric_options
from podwire.cli.options import Interval

if TYPE_CHECKING:
    from podwire.agent.config import AgentConfig, GuardChoice
    from podwire.cluster.source import LeaseSource

_PATH = click.Path(path_type=Path, resolve_path=True)


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  podwire agent --kubeconfig /etc/kubernetes/kubelet.conf --node-name "$(hostname)"
  podwire agent --iface eth1 --network 10.244.0.0/16     in a pod, with its service account
  podwire agent --profile calico                         Calico's fabric
  podwire agent --store etcd://10.0.0.1:2379             Flannel's network, without Kubernetes
  podwire agent hold --node node1                        break things there and trace them
""",
)
@click.option(
    "--node-name",
    metavar="NODE",
    envvar="NODE_NAME",
    help="This node's name.  [default: the hostname]",
)
@click.option(
    "--kubeconfig",
    type=_PATH,
    metavar="FILE",
    help="Credentials for the API.  [default: $KUBECONFIG, else the pod's own]",
)
@click.option(
    "--store",
    metavar="STORE",
    default="kube",
    show_default=True,
    help="Where leases are: kube (podCIDRs and annotations of Nodes), or Flannel's in etcd: "
    "etcd://HOST:PORT[,HOST:PORT…][/PREFIX].",
)
@fabric_options
@click.option(
    "--network",
    metavar="CIDR",
    help="The cluster's pod network; one CIDR, or one of each family with a comma."
    "  [default: the profile's, 10.244.0.0/16 in Flannel's]",
)
@click.option(
    "--iface", metavar="LINK", help="Underlay link, by name or address.  [default: the node IP's]"
)
@click.option(
    "--probe-interval",
    type=Interval(0.1, 60),
    metavar="SECONDS",
    show_default="1",
    help="With --transport auto: how often VXLAN to each peer is probed.",
)
@click.option(
    "--masquerade/--no-masquerade",
    default=True,
    show_default=True,
    help="Give pods' packets that leave the cluster network the node's address.",
)
@click.option(
    "--guard",
    type=click.Choice(["auto", "ebpf", "nftables"]),
    default="auto",
    show_default=True,
    help="What does anti-spoofing: a program at each pod's port (auto: where the kernel takes it),"
    " or nftables.",
)
@click.option(
    "--health-address",
    metavar="ADDRESS",
    default="127.0.0.1:9910",
    show_default=True,
    help="Where /healthz, /readyz and /metrics are served; '' for nowhere.",
)
@click.option(
    "--run-dir",
    type=_PATH,
    default=Path("/run/podwire"),
    show_default=True,
    help="For the sockets cni.sock, agent.sock and operator.sock.",
)
@click.option(
    "--state-dir",
    type=_PATH,
    default=Path("/var/lib/podwire"),
    show_default=True,
    help="For ipam.db: the pods' addresses, kept over restarts.",
)
@click.option(
    "--cni-conf-dir",
    type=_PATH,
    default=Path("/etc/cni/net.d"),
    show_default=True,
    help="Where the runtime looks for CNI configurations.",
)
@click.option(
    "--cni-bin-dir",
    type=_PATH,
    default=Path("/opt/cni/bin"),
    show_default=True,
    help="Where the runtime looks for CNI executables.",
)
@click.option(
    "--subnet-file",
    type=_PATH,
    default=Path("/run/flannel/subnet.env"),
    show_default=True,
    help="The lease for other programs, as flanneld writes it.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Log this and what is worse; debug also logs each change as its ip, bridge or nft line.",
)
@click.pass_context
def agent(
    ctx: click.Context,
    /,
    node_name: str | None,
    kubeconfig: Path | None,
    store: str,
    network: str | None,
    iface: str | None,
    probe_interval: float | None,
    masquerade: bool,
    guard: GuardChoice,
    health_address: str,
    run_dir: Path,
    state_dir: Path,
    cni_conf_dir: Path,
    cni_bin_dir: Path,
    subnet_file: Path,
    log_level: str,
    **fabric: Any,
) -> None:
    """Run this node's agent: lease its subnet, program the kernel, wire pods.

    Stopping it leaves the kernel as it is: pods go on talking, and the next start changes only
    what has to be changed. With a command (below), tell an agent
    that is running what to do.
    """
    if ctx.invoked_subcommand is not None:
        return
    import asyncio

    from podwire import log
    from podwire.agent.config import AgentConfig, parse_network, parse_node_name
    from podwire.agent.fabrics import stored_fabric
    from podwire.agent.files import make_directory
    from podwire.agent.stores import lease_source

    log.setup(log_level)
    config = AgentConfig(
        # A kubelet calls its Node so, too.
        node_name=parse_node_name(node_name or socket.gethostname().lower()),
        network=parse_network(network) if network is not None else (),
        options=chosen_fabric(**fabric),
        store=store,
        kubeconfig=kubeconfig,
        iface=iface,
        masquerade=masquerade,
        guard=guard,
        probe_interval_s=probe_interval,
        health_address=health_address,
        run_dir=run_dir,
        state_dir=state_dir,
        cni_conf_dir=cni_conf_dir,
        cni_bin_dir=cni_bin_dir,
        subnet_file=subnet_file,
    )
    if store == "kube":
        # In another store stands more of the fabric, which the options have to fit.
        config.refuse_idle(stored_fabric(config.options, config.network, None)[0])
    make_directory(run_dir, "--run-dir", longest=f".{config.operator_socket.name}.{2**22}")
    make_directory(state_dir, "--state-dir")
    asyncio.run(_run(config, lease_source(config)))


_node_option = click.option(
    "--node", metavar="NODE", help="Whose agent; without it, this host's own."
)


@agent.command(short_help="Have an agent leave the kernel as it is.")
@_node_option
@target_options
def hold(node: str | None) -> None:
    """Have an agent leave the kernel as it is, until `resume` or its next start.

    To break something there, and see what becomes of packets: otherwise the agent mends it within
    milliseconds. It goes on watching the cluster, and new pods are wired.
    """
    held = _hold(node, on=True)
    click.echo(f"{held}: held; nothing is mended until: podwire agent resume --node {held}")


@agent.command(short_help="Have a held agent mend the kernel again.")
@_node_option
@target_options
def resume(node: str | None) -> None:
    """Have a held agent mend the kernel again, beginning with all that differs."""
    click.echo(f"{_hold(node, on=False)}: mending again")


def _hold(node: str | None, *, on: bool) -> str:
    """Hold or resume; the node's name."""
    import asyncio

    from podwire.cli.agents import agents
    from podwire.trace.wire import Hold

    async def work() -> str:
        async with agents() as them:
            connection = await them.dial(node)
            await connection.call(Hold(id=0, on=on))
            return connection.welcome.node

    return asyncio.run(work())


@agent.command(short_help="Connect stdin and stdout to the agent (for trace).")
@click.option(
    "--socket",
    "path",
    type=_PATH,
    envvar="PODWIRE_OPERATOR_SOCKET",
    default=Path("/run/podwire/operator.sock"),
    show_default=True,
    help="The agent's.",
)
def relay(path: Path) -> None:
    """Connect standard input and output to the agent's operator socket.

    What `podwire trace` and its like run in the agent's pod, through the Kubernetes API.
    """
    from podwire.cli.relay import relay as pump

    pump(path, sys.stdin.fileno(), sys.stdout.fileno())


async def _run(config: AgentConfig, source: LeaseSource) -> None:
    import asyncio

    from podwire.agent.daemon import Agent
    from podwire.errors import PodwireError

    if os.geteuid() != 0:
        raise PodwireError("the agent programs the kernel, which takes root", remedy="use sudo")
    task = asyncio.ensure_future(Agent(config, source).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return
    except BaseExceptionGroup as group:
        # One task's failure ends the agent; the first error is the one to read. Its task may be of
        # a group that is a task itself.
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group
