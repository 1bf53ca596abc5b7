"""`podwire logs`: what a container wrote."""

from __future__ import annotations

import sys

import click

from podwire.cli import options
from podwire.cli.context import target_options, with_client
from podwire.cli.pods import choose_container, pod_name
from podwire.cluster.kube import KubeClient


@click.command(
    short_help="Print what a pod's container wrote.",
    epilog="""
    \b
    Examples:
      podwire logs a
      podwire logs -f --tail 10 a
      podwire logs a -c sidecar
    """,
)
@click.argument("pod", metavar="POD")
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
@options.container_option
@click.option(
    "--tail", type=click.IntRange(min=-1), default=-1, metavar="LINES", help="Only the last LINES."
)
@click.option("--timestamps", is_flag=True, help="Put the time in front of each line.")
@options.namespace_option
@target_options
def logs(
    pod: str,
    follow: bool,
    container: str | None,
    tail: int,
    timestamps: bool,
    namespace: str | None,
) -> None:
    """Print what a container of POD wrote to its standard output and error."""
    name = pod_name(pod)

    async def work(client: KubeClient) -> None:
        space = namespace or client.config.namespace
        chosen = await choose_container(client, name, space, container)
        output = sys.stdout.buffer
        async for chunk in client.pod_logs(
            name,
            space,
            follow=follow,
            container=chosen,
            tail_lines=None if tail < 0 else tail,
            timestamps=timestamps,
        ):
            output.write(chunk)
            output.flush()

    with_client(work)
