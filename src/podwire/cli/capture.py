"""`podwire capture`: all interfaces of pods and nodes in one pcapng file.

What lives here: arguments, which pods and nodes are meant, the output, the end. What does not: the
way to the agents (`agents`), the order of frames (`podwire.trace.capturing`), the file's names.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import click

from podwire.cli import options
from podwire.cli.context import target, target_options
from podwire.errors import InputError, PodwireError, UnsupportedError

if TYPE_CHECKING:
    from podwire.cli.agents import Agents
    from podwire.cluster.kube import KubeClient
    from podwire.trace.capturing import Capturing, Share
    from podwire.trace.evidence import NodeFacts, PodFacts

#: Where kubelets and API servers listen, unless they are told otherwise.
_KUBELET_PORT, _API_PORT = 10250, 6443
#: While a pipe has no room, look so often whether the capture is to end.
_LOOK_MS = 200


class Wanted(NamedTuple):
    """What the person asked for."""

    filter_text: str
    nodes: tuple[str, ...]
    pods: tuple[str, ...]
    namespace: str | None
    most: int | None
    duration_s: float | None
    snaplen: int


@click.command(
    short_help="Capture at all interfaces of pods and nodes.",
    epilog="""
    \b
    Examples:
      podwire capture -o all.pcapng                        until Ctrl-C
      podwire capture icmp -o ping.pcapng --duration 10s
      podwire capture tcp port 80 --pod pod1 --node node1 -c 100 -o web.pcapng
      podwire capture udp port 8472 -o - | tshark -r - -d udp.port==8472,vxlan
      podwire capture -o - | wireshark -k -i -
    """,
)
@click.argument("filter_words", metavar="[FILTER]...", nargs=-1)
@click.option(
    "-o", "--output", metavar="FILE", required=True, help="The pcapng file; - for standard output."
)
@click.option(
    "--node",
    "nodes",
    metavar="NODE",
    multiple=True,
    help="This node's own interfaces; repeatable.",
)
@click.option(
    "--pod",
    "pods",
    metavar="POD",
    multiple=True,
    help="This pod's interfaces (NAME or NAMESPACE/NAME); repeatable.",
)
@click.option(
    "-c", "--count", type=click.IntRange(min=1), metavar="N", help="End after so many packets."
)
@click.option(
    "--duration", type=options.DURATION, metavar="TIME", help="End after this time (30s, 5m)."
)
@click.option(
    "--snaplen",
    type=click.IntRange(64, 262144),
    default=262144,
    show_default=True,
    metavar="BYTES",
    help="Keep at most so much of each packet.",
)
@options.namespace_option
@target_options
@click.pass_context
def capture(
    ctx: click.Context,
    filter_words: tuple[str, ...],
    output: str,
    nodes: tuple[str, ...],
    pods: tuple[str, ...],
    count: int | None,
    duration: float | None,
    snaplen: int,
    namespace: str | None,
) -> None:
    """Capture what passes all interfaces of nodes and pods into one file.

    All nodes and all pods, or with --node and --pod only those named. FILTER is tcpdump's
    (pcap-filter(7)) and is applied in the kernel. Ends with Ctrl-C; the file is a valid capture
    at any moment. Exit code 1 says that a part of what was asked for is missing.
    """
    if output == "-" and sys.stdout.isatty():
        raise click.UsageError("-o - is not for a terminal: pipe it on, or name a file")
    wanted = Wanted(" ".join(filter_words), nodes, pods, namespace, count, duration, snaplen)
    _check_filter(wanted.filter_text)
    with _opened(output) as out:
        complete = asyncio.run(_capture(wanted, out, output))
    ctx.exit(0 if complete else 1)


def _check_filter(text: str) -> None:
    """A filter that libpcap refuses is a wrong command line, said before anything is opened."""
    from podwire.kernel.observe.pcap_filter import compile_for_all

    try:
        compile_for_all(text)
    except InputError as error:
        raise click.UsageError(str(error)) from error
    except UnsupportedError:
        pass  # no libpcap here; the agents have theirs


async def _capture(wanted: Wanted, out: _Output, output: str) -> bool:
    from podwire.cli.agents import agents
    from podwire.trace.capturing import Capturing
    from podwire.trace.facts import read_nodes

    async with agents() as them:
        known = await read_nodes(them.client)
        running = await _running_pods(them.client)
        shares = await _shares(them, wanted, known)
        capturing = Capturing(
            write=out.write,
            tell=_tell,
            filter_text=_own_excluded(wanted.filter_text, them.client),
            snaplen=wanted.snaplen,
            most=wanted.most,
        )
        await capturing.open(them.dial, shares, known, running)
        for note in capturing.notes:
            _tell(note)
        _tell(_listening(capturing, shares, wanted))
        with _until_told(out, capturing.stop):
            await capturing.run(wanted.duration_s)
        _summary(capturing, output)
    return not capturing.incomplete


# --- who ----------------------------------------------------------------------------------------


async def _shares(them: Agents, wanted: Wanted, known: Sequence[NodeFacts]) -> list[Share]:
    """What each node's agent is asked for; all of every node where nothing is named."""
    from podwire.cli import ends
    from podwire.trace.capturing import Share

    client = them.client
    if not wanted.nodes and not wanted.pods:
        if not known:
            raise PodwireError("the cluster has no nodes", remedy="podwire get nodes")
        return [Share(node.name, own=True, all_pods=True, needed=False) for node in known]
    space = wanted.namespace or client.config.namespace
    own: set[str] = set()
    pods: dict[str, list[str]] = {}
    for text in wanted.nodes:
        word = ends.parse(f"node/{text}", "--node", space)
        own.add((await ends.find(client, word, "--node")).node)
    for text in wanted.pods:
        word = ends.parse(f"pod/{text}", "--pod", space)
        found = await ends.find(client, word, "--pod")
        if found.host_network:
            raise InputError(
                f"pod {found.host_network} has no network of its own, it uses its node's",
                field="--pod",
                remedy=f"--node {found.node}",
            )
        pods.setdefault(found.node, []).append(found.name)
    return [
        Share(node, own=node in own, pods=tuple(dict.fromkeys(pods.get(node, ()))))
        for node in sorted(own | set(pods))
    ]


async def _running_pods(client: KubeClient) -> list[PodFacts]:
    """The pods whose addresses get names: those of the whole cluster, where they may be listed."""
    from podwire.cluster.kube import PODS
    from podwire.errors import ForbiddenError
    from podwire.trace.facts import pod_facts

    try:
        listed = await client.list(PODS)
    except ForbiddenError as error:
        _tell(f"addresses of pods get no names: {error.message}")
        return []
    return [
        pod_facts(pod) for pod in listed.items if not (pod.get("spec") or {}).get("hostNetwork")
    ]


def _own_excluded(text: str, client: KubeClient) -> str:
    """The filter, without what carries the capture itself.

    On a cluster it comes through the API server and the kubelets, over interfaces that are
    captured: each packet would make another one. A lab's agents are asked through Unix sockets.
    """
    if target().lab_info() is not None:
        return text
    port = urlsplit(client.config.server).port
    ports = {_KUBELET_PORT, port if port not in (None, 443) else _API_PORT}
    carriers = " or ".join(f"tcp port {port}" for port in sorted(ports))
    _tell(f"left out, because it carries this capture: {carriers}")
    return f"({text}) and not ({carriers})" if text else f"not ({carriers})"


# --- in and out ---------------------------------------------------------------------------------


class _Output:
    """Where the capture goes. Blocks are written whole, so that what is there is one at any moment.

    A pipe is written to only as far as it has room: whoever reads it may be slow, and a signal is
    to end the capture all the same (`interrupted`).
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.interrupted = False
        self.is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)

    def write(self, data: bytes) -> None:
        """Raises BrokenPipeError where nobody reads (any more), PodwireError for a full disk."""
        view = memoryview(data)
        try:
            while view:
                self._wait()
                view = view[os.write(self.fd, view[: select.PIPE_BUF] if self.is_pipe else view) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise PodwireError(f"the capture can't be written: {error.strerror}") from error

    def _wait(self) -> None:
        if not self.is_pipe:
            return
        ready = select.poll()
        ready.register(self.fd, select.POLLOUT)
        while not ready.poll(_LOOK_MS):
            if self.interrupted:
                raise BrokenPipeError


@contextlib.contextmanager
def _opened(output: str) -> Iterator[_Output]:
    if output == "-":
        sys.stdout.flush()
        yield _Output(sys.stdout.fileno())
        return
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InputError(f"{output}: {error.strerror}", field="-o") from error
    try:
        yield _Output(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _until_told(out: _Output, stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C ends the capture in good order, the next one at once; so does a reader
    that has gone, also when there is nothing to write."""
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {}

    def end(number: int, _frame: object) -> None:
        # Not the loop's own way to handle signals: that waits for a write that waits.
        out.interrupted = True
        signal.signal(number, before[number])
        loop.call_soon_threadsafe(stop)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        before[number] = signal.signal(number, end)
    if out.is_pipe:
        loop.add_reader(out.fd, stop)
    try:
        yield
    finally:
        if out.is_pipe:
            loop.remove_reader(out.fd)
        for restored, handler in before.items():
            signal.signal(restored, handler)


def _tell(text: str) -> None:
    """A line on standard error: standard output may be the capture."""
    from podwire.trace.render.ink import clean

    click.echo(clean(text), err=True)


def _listening(capturing: Capturing, shares: Sequence[Share], wanted: Wanted) -> str:
    if not wanted.nodes and not wanted.pods:
        nodes = len(capturing.sources)
        what = f"{nodes} {'node' if nodes == 1 else 'nodes'} and all their pods"
    else:
        what = ", ".join(
            name
            for share in shares
            for name in (*([share.node] if share.own else []), *(f"pod:{p}" for p in share.pods))
        )
    places = capturing.places
    noun = "namespace" if places == 1 else "namespaces"
    return f"capturing at {what} ({places} {noun}); Ctrl-C ends it"


def _summary(capturing: Capturing, output: str) -> None:
    from podwire.trace.render.ink import clean

    counts, lost = capturing.file.counts, capturing.file.lost
    unplaced = {source.share.node: source.lost for source in capturing.sources if source.lost}
    total = sum(lost.values()) + sum(unplaced.values())
    where = "" if output == "-" else f" in {output}"
    noun = "packet" if capturing.packets == 1 else "packets"
    _tell(f"{capturing.packets} {noun} of {len(counts)} interfaces{where}, {total} lost")
    digits = max((len(str(count)) for count in counts.values()), default=0)
    for name, count in sorted(counts.items()):
        missing = f"  ({lost[name]} lost before its packets)" if lost[name] else ""
        click.echo(f"  {count:>{digits}}  {clean(name)}{missing}", err=True)
    if total:
        _tell("lost packets found no room in the agents' rings: narrow the filter, or --snaplen")
