"""`podwire exec`: run a command in a container, with our input, output, terminal and exit code.

With `-t` our terminal is put in raw mode, so that every key (Ctrl-C too) goes to the command, and
its size is passed on whenever it changes. It is put back however the command ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator

import click

from podwire.cli import options
from podwire.cli.context import target_options, with_client
from podwire.cli.pods import choose_container, pod_name
from podwire.cluster.kube import ExecSession, KubeClient
from podwire.cluster.kube.exec import STDERR

_CHUNK_BYTES = 32 * 1024


@click.command(
    "exec",
    short_help="Run a command in a pod's container.",
    epilog="""
    \b
    Examples:
      podwire exec a -- ip route
      podwire exec -it a -- sh
      tar c . | podwire exec -i a -- tar x -C /tmp
    """,
)
@click.argument("pod", metavar="POD")
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND…")
@click.option("-i", "--stdin", "use_stdin", is_flag=True, help="Pass our standard input on.")
@click.option("-t", "--tty", "use_tty", is_flag=True, help="Give the command a terminal.")
@options.container_option
@options.namespace_option
@target_options
@click.pass_context
def exec_(
    ctx: click.Context,
    pod: str,
    command: tuple[str, ...],
    use_stdin: bool,
    use_tty: bool,
    container: str | None,
    namespace: str | None,
) -> None:
    """Run COMMAND in a container of POD; ends with its exit code.

    Put `--` before a COMMAND that has options of its own.
    """
    name = pod_name(pod)
    if use_tty and not (use_stdin and sys.stdin.isatty()):
        click.echo("no terminal: standard input is none, so -t is left out", err=True)
        use_tty = False

    async def work(client: KubeClient) -> int:
        space = namespace or client.config.namespace
        chosen = await choose_container(client, name, space, container)
        session = await client.pod_exec(
            name, space, command, container=chosen, stdin=use_stdin, tty=use_tty
        )
        async with session:
            with raw_terminal() if use_tty else contextlib.nullcontext():
                return await _attach(session, use_stdin, use_tty)

    ctx.exit(with_client(work))


async def _attach(session: ExecSession, use_stdin: bool, use_tty: bool) -> int:
    """Move bytes until the command ends; gives its exit code."""
    loop = asyncio.get_running_loop()
    if use_stdin:
        threading.Thread(target=_pump_stdin, args=(session, loop), daemon=True).start()
    resizes: set[asyncio.Task[None]] = set()

    def resize() -> None:
        size = shutil.get_terminal_size()
        task = loop.create_task(session.resize(size.columns, size.lines))
        resizes.add(task)
        task.add_done_callback(resizes.discard)

    if use_tty:
        resize()
        loop.add_signal_handler(signal.SIGWINCH, resize)
    try:
        async for channel, data in session:
            stream = sys.stderr if channel == STDERR else sys.stdout
            stream.buffer.write(data)
            stream.buffer.flush()
    finally:
        if use_tty:
            loop.remove_signal_handler(signal.SIGWINCH)
    return session.exit_code


def _pump_stdin(session: ExecSession, loop: asyncio.AbstractEventLoop) -> None:
    """Pass standard input on; a thread, since a file or a pipe may not be pollable.

    Each piece waits until the one before is sent, so a slow command slows the reading. When the
    command ends first the loop is closed under us, and nobody wants the rest.
    """
    with contextlib.suppress(RuntimeError, asyncio.CancelledError):
        while data := os.read(sys.stdin.fileno(), _CHUNK_BYTES):
            asyncio.run_coroutine_threadsafe(session.write(data), loop).result()
        asyncio.run_coroutine_threadsafe(session.close_stdin(), loop).result()


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Standard input without line editing, echo and signals, and as before afterwards."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
