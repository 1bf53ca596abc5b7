"""`podwire teardown`: take all that the agent made off this host."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path, resolve_path=True)


@click.command(
    epilog="""\b
Examples:
  kubectl drain node1 && sudo podwire teardown
  sudo podwire teardown --force        also where pods are attached: they lose their network
"""
)
@click.option("--force", is_flag=True, help="Also detach the pods that are still there.")
@click.option("--run-dir", type=_PATH, default=Path("/run/podwire"), show_default=True)
@click.option("--state-dir", type=_PATH, default=Path("/var/lib/podwire"), show_default=True)
@click.option("--cni-conf-dir", type=_PATH, default=Path("/etc/cni/net.d"), show_default=True)
@click.option("--cni-bin-dir", type=_PATH, default=Path("/opt/cni/bin"), show_default=True)
@click.option(
    "--subnet-file", type=_PATH, default=Path("/run/flannel/subnet.env"), show_default=True
)
def teardown(
    force: bool,
    run_dir: Path,
    state_dir: Path,
    cni_conf_dir: Path,
    cni_bin_dir: Path,
    subnet_file: Path,
) -> None:
    """Remove this host's part of the pod network: links, routes, nft tables, CNI files, state.

    Stop the agent first. Only what Podwire made is removed; sysctls stay as they are.
    """
    from podwire.agent.config import AgentConfig
    from podwire.agent.teardown import teardown as undo

    config = AgentConfig(
        node_name="",
        network=(),
        run_dir=run_dir,
        state_dir=state_dir,
        cni_conf_dir=cni_conf_dir,
        cni_bin_dir=cni_bin_dir,
        subnet_file=subnet_file,
    )
    done = 0
    for line in undo(config, force=force):
        click.echo(line)
        done += 1
    click.secho("nothing of Podwire is left on this host" if done else "nothing to do", fg="green")
