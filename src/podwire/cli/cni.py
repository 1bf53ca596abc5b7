"""`podwire cni`: put the CNI plugin on this host, take it off, ask the agent how it is."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)

_bin_dir = click.option(
    "--bin-dir",
    type=_PATH,
    default=Path("/opt/cni/bin"),
    show_default=True,
    help="Where runtimes look for CNI executables.",
)
_conf_dir = click.option(
    "--conf-dir",
    type=_PATH,
    default=Path("/etc/cni/net.d"),
    show_default=True,
    help="Where runtimes look for CNI configurations.",
)
_socket = click.option(
    "--socket",
    "socket_path",
    type=_PATH,
    default=Path("/run/podwire/cni.sock"),
    show_default=True,
    help="The agent's CNI socket.",
)


@click.group()
def cni() -> None:
    """Install the CNI plugin on this host.

    The plugin is a small executable that hands each call of the container runtime to the agent.
    """


@cni.command(
    epilog="""\b
Examples:
  podwire cni install
  podwire cni install --bin-dir /host/opt/cni/bin --conf-dir /host/etc/cni/net.d
"""
)
@_bin_dir
@_conf_dir
@_socket
def install(bin_dir: Path, conf_dir: Path, socket_path: Path) -> None:
    """Write the plugin's executable and configuration.

    The agent does this by itself once pods can be wired. Files that are right already stay as
    they are.
    """
    from podwire.cni.install import install as install_files

    changed = install_files(bin_dir, conf_dir, socket_path)
    for path in changed:
        click.echo(f"{path} written")
    if not changed:
        click.echo("installed already")


@cni.command()
@_bin_dir
@_conf_dir
def uninstall(bin_dir: Path, conf_dir: Path) -> None:
    """Delete the plugin's executable and configuration.

    Pods keep their network, but the runtime can't take them away cleanly without the executable:
    drain the node first.
    """
    from podwire.cni.install import uninstall as uninstall_files

    removed = uninstall_files(bin_dir, conf_dir)
    for path in removed:
        click.echo(f"{path} deleted")
    if not removed:
        click.echo("not installed")


@cni.command()
@_socket
def status(socket_path: Path) -> None:
    """Ask the agent whether pods can be wired; exit code 1 when not."""
    import json

    from podwire.cni import shim
    from podwire.cni.types import NEWEST_VERSION, PLUGIN_TYPE
    from podwire.errors import PodwireError

    conf = {"cniVersion": NEWEST_VERSION, "name": "podwire", "type": PLUGIN_TYPE}
    try:
        code, stdout = shim.call(
            str(socket_path), b"CNI_COMMAND=STATUS\0", json.dumps(conf).encode(), timeout_s=5.0
        )
    except shim.Failure as failure:
        raise PodwireError(str(failure), remedy="start `podwire agent` on this host") from None
    if code != 0:
        raise PodwireError(json.loads(stdout)["msg"])
    click.echo("ready")
