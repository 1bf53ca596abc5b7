"""`podwire agent`: the daemon of a node."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import click

_PATH = click.Path(path_type=Path, resolve_path=True)


@click.command(
    epilog="""\b
Examples:
  podwire agent --kubeconfig /etc/kubernetes/kubelet.conf --node-name "$(hostname)"
  podwire agent --iface eth1 --network 10.244.0.0/16     in a pod, with its service account
"""
)
@click.option("--node-name", envvar="NODE_NAME", help="This node's name.  [default: the hostname]")
@click.option("--kubeconfig", type=_PATH, help="How to reach the API.")
@click.option(
    "--network",
    default="10.244.0.0/16",
    show_default=True,
    help="The cluster's pod network; one CIDR, or one of each family with a comma.",
)
@click.option("--iface", help="Underlay link, by name or address.  [default: the node IP's]")
@click.option(
    "--vni",
    # The device's name has to fit into 15 characters (IFNAMSIZ), which the largest VNIs do not.
    type=click.IntRange(1, 9_999_999),
    default=1,
    show_default=True,
    help="VXLAN network identifier; the device is named after it (flannel.VNI).",
)
@click.option(
    "--vxlan-port",
    type=click.IntRange(1, 65535),
    default=8472,
    show_default=True,
    help="UDP port of the tunnels; the same on all nodes.",
)
@click.option(
    "--masquerade/--no-masquerade",
    default=True,
    show_default=True,
    help="Give pods' packets that leave the cluster network the node's address.",
)
@click.option(
    "--health-address",
    default="127.0.0.1:9910",
    show_default=True,
    help="Where /healthz, /readyz and /metrics are served; '' for nowhere.",
)
@click.option(
    "--run-dir",
    type=_PATH,
    default=Path("/run/podwire"),
    show_default=True,
    help="For the sockets cni.sock and agent.sock.",
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
def agent(
    node_name: str | None,
    kubeconfig: Path | None,
    network: str,
    iface: str | None,
    vni: int,
    vxlan_port: int,
    masquerade: bool,
    health_address: str,
    run_dir: Path,
    state_dir: Path,
    cni_conf_dir: Path,
    cni_bin_dir: Path,
    subnet_file: Path,
    log_level: str,
) -> None:
    """Run this node's agent: lease its subnet, program the kernel, wire pods.

    Stopping it leaves the kernel as it is: pods go on talking, and the next start changes only
    what has to be changed.
    """
    from podwire import log
    from podwire.agent.config import AgentConfig, parse_network
    from podwire.cluster.kube import ClientConfig

    log.setup(log_level)
    config = AgentConfig(
        node_name=node_name or socket.gethostname(),
        network=parse_network(network),
        kubeconfig=kubeconfig,
        iface=iface,
        vni=vni,
        vxlan_port=vxlan_port,
        masquerade=masquerade,
        health_address=health_address,
        run_dir=run_dir,
        state_dir=state_dir,
        cni_conf_dir=cni_conf_dir,
        cni_bin_dir=cni_bin_dir,
        subnet_file=subnet_file,
    )
    asyncio.run(_run(config, ClientConfig.load(kubeconfig)))


async def _run(config: object, client_config: object) -> None:
    from podwire.agent.config import AgentConfig
    from podwire.agent.daemon import Agent
    from podwire.cluster.kube import ClientConfig
    from podwire.errors import PodwireError

    assert isinstance(config, AgentConfig)  # noqa: S101
    assert isinstance(client_config, ClientConfig)  # noqa: S101
    if os.geteuid() != 0:
        raise PodwireError("the agent programs the kernel, which takes root", remedy="use sudo")
    task = asyncio.ensure_future(Agent(config, client_config).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return
    except BaseExceptionGroup as group:
        # One task's failure ends the agent; the first error is the one to read.
        raise group.exceptions[0] from group
