"""Measuring the paths to the peers: real packets, sent as any program of this node would.

What lives here: what is sent to each peer, to all of them at once, and the search for the largest
packet that passes where the one that should does not. What does not: what follows from it, which
is for `tunnel`, `mtu` and `offload` to say.

    small and full, with DF    to the node's address             the underlay by itself
    small and full, with DF    to one that is reached as its pods are: through the tunnel and back
    TCP to a closed port       to both                           checksums that the NIC makes
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import msgspec

from podwire.agent.doctor.ways import Way, ways
from podwire.errors import KernelError
from podwire.model.cluster import NetworkConfig, Node
from podwire.model.probe import Probe
from podwire.model.state import IPAddress
from podwire.trace.probe import Prober
from podwire.trace.records import ProbeResult

if TYPE_CHECKING:
    from podwire.agent.daemon import Agent

#: So many probes are under way at once; each is a thread that waits. Five hundred peers that are
#: all dead take 7 s so, and all with too small an MTU as long.
_AT_ONCE = 256
#: How long the attempts at a probe wait, one after the other: a single loss is nobody's fault.
_TIMEOUTS_S = (0.4, 0.4)
#: So the first one to an address. The packet that is lost may be the question for the address's
#: MAC, which the kernel asks again after a second (retrans_time_ms, arp(7)) and not for each probe.
_FIRST_TIMEOUTS_S = (0.4, 1.3)
#: Half of those of a search are not answered, and it is known by then that the peer answers.
_SEARCH_S = 0.25
#: Bytes of a small probe's packet, which passed where a search begins.
_SMALL = 84
#: Sizes tried at once in a search: three rounds find one of 4900.
_SEARCH_AT_ONCE = 16


class Target(msgspec.Struct, frozen=True):
    """What became of the probes to one address, the full one of `size` bytes. `largest` is the
    largest packet that passed, where the full one did not."""

    ip: IPAddress
    size: int
    small: ProbeResult
    full: ProbeResult
    tcp: ProbeResult
    largest: int | None = None

    @property
    def answers(self) -> bool:
        return self.small.outcome == "replied"

    @property
    def carries(self) -> bool:
        """Whether the full-sized packet passed."""
        return self.full.outcome == "replied"

    @property
    def lost(self) -> bool:
        """Whether nothing came back: neither an answer nor a refusal."""
        return self.small.outcome == "timeout"


class Path(msgspec.Struct, frozen=True):
    """The way to a peer: to its address in the underlay, and to the far end of the way itself, None
    where that has no address of the node's own."""

    way: Way
    node: Target
    far: Target | None

    @property
    def peer(self) -> Node:
        return self.way.peer


class Measured(msgspec.Struct, frozen=True):
    """All paths; and how many packets with wrong checksums arrived meanwhile, from whomever."""

    paths: tuple[Path, ...] = ()
    wrong_checksums: int = 0


Measure = Callable[[], Awaitable[Measured]]


@contextlib.asynccontextmanager
async def measured_once(agent: Agent, peers: tuple[Node, ...]) -> AsyncIterator[Measure]:
    """A function that measures once, however often and by how many it is asked."""
    tasks: list[asyncio.Task[Measured]] = []

    async def measured() -> Measured:
        network = agent.network
        if network is None:
            return Measured()
        before = _checksum_errors()
        executor = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="doctor")
        try:
            scout = _Scout(network, executor)
            found = ways(network, peers, agent.peering.blocked)
            paths = await asyncio.gather(*map(scout.path, found))
            return Measured(tuple(paths), max(0, _checksum_errors() - before))
        finally:
            # Not waited for: a probe that is under way ends by itself.
            executor.shutdown(wait=False, cancel_futures=True)

    def measure() -> Awaitable[Measured]:
        if not tasks:
            tasks.append(asyncio.create_task(measured()))
        # One check that is cut short does not take the others' measurements with it.
        return asyncio.shield(tasks[0])

    try:
        yield measure
    finally:
        for task in tasks:
            task.cancel()


class _Scout:
    """Sends the probes of one examination."""

    def __init__(self, network: NetworkConfig, executor: ThreadPoolExecutor) -> None:
        self._network = network
        self._executor = executor
        #: Held by the first search; the others then try what it has found.
        self._first_search = asyncio.Lock()
        self._underlay_sizes: set[int] = set()
        self._far_sizes: set[int] = set()

    async def path(self, way: Way) -> Path:
        network = self._network
        if way.far is None:
            node = await self._target(way.node, network.underlay.mtu)
            return Path(way, await self._searched(node, self._underlay_sizes), None)
        node, far = await asyncio.gather(
            self._target(way.node, network.underlay.mtu), self._target(way.far, network.mtu)
        )
        node = await self._searched(node, self._underlay_sizes)
        if node.largest is not None:
            # What the tunnel carries follows from it, nearly always.
            self._far_sizes.add(node.largest - way.added)
        return Path(way, node, await self._searched(far, self._far_sizes))

    async def _target(self, ip: IPAddress, size: int) -> Target:
        small = await self._shoot(Probe(target=str(ip)), _FIRST_TIMEOUTS_S)
        if small.outcome == "timeout":
            # The others would be lost, too; and where many peers are, waiting for them adds up.
            return Target(ip, size, small, small, small)
        port = self._network.vxlan_port  # Of TCP, where nothing listens.
        full, tcp = await asyncio.gather(
            self._shoot(Probe(target=str(ip), size=size)),
            self._shoot(Probe(protocol="tcp", target=str(ip), port=port)),
        )
        return Target(ip, size, small, full, tcp)

    async def _searched(self, target: Target, known: set[int]) -> Target:
        """The target with the largest size that passes, where the full one does not.

        `known` are the sizes that searches have found so far, which are tried first.
        """
        if target.carries or not target.answers:
            return target
        # Of hundreds of peers, some lose a packet more than once.
        full = await self._shoot(
            Probe(target=str(target.ip), size=target.size), (_SEARCH_S, _SEARCH_S)
        )
        if full.outcome == "replied":
            return msgspec.structs.replace(target, full=full)
        async with self._first_search:
            if not known:
                return await self._search(target, known)
        return await self._search(target, known)

    async def _search(self, target: Target, known: set[int]) -> Target:
        likely = sorted({one for size in known for one in (size, size + 1)})
        passes, fails = await self._narrow(target.ip, likely, _SMALL, target.size)
        passes = await self._bisect(target.ip, passes, fails)
        known.add(passes)
        return msgspec.structs.replace(target, largest=passes)

    async def _bisect(self, ip: IPAddress, passes: int, fails: int) -> int:
        while fails - passes > 1:
            step = max(1, (fails - passes) // (_SEARCH_AT_ONCE + 1))
            sizes = range(passes + step, fails, step)
            passes, fails = await self._narrow(ip, sizes, passes, fails)
        return passes

    async def _narrow(
        self, ip: IPAddress, sizes: Sequence[int], passes: int, fails: int
    ) -> tuple[int, int]:
        """Try sizes at once: the largest that passes by now, and the least above that does not."""
        sizes = [size for size in sizes if passes < size < fails]
        if not sizes:
            return passes, fails
        probes = [Probe(target=str(ip), size=size) for size in sizes]
        results = await asyncio.gather(*(self._shoot(probe, (_SEARCH_S,)) for probe in probes))
        answered = [
            size for size, one in zip(sizes, results, strict=True) if one.outcome == "replied"
        ]
        passes = max([passes, *answered])
        # One that is lost below one that passed was bad luck, not too large.
        return passes, min([fails, *(size for size in sizes if size > passes)])

    async def _shoot(
        self, probe: Probe, timeouts_s: tuple[float, ...] = _TIMEOUTS_S
    ) -> ProbeResult:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, _shoot, probe, timeouts_s)


def _shoot(probe: Probe, timeouts_s: tuple[float, ...]) -> ProbeResult:
    """One probe, repeated for as long as nothing comes back and attempts are left."""
    try:
        for timeout_s in timeouts_s:
            with Prober(None, msgspec.structs.replace(probe, timeout_s=timeout_s)) as prober:
                (result,) = prober.fire()
            if result.outcome != "timeout":
                break
    except KernelError as error:
        return ProbeResult(number=1, outcome="error", errno=error.errno, text=error.message)
    return result


def _checksum_errors() -> int:
    """How many packets with wrong checksums this network namespace has received (proc(5))."""
    numbered = (line.split() for line in _read_or_nothing("/proc/net/snmp6"))
    count = sum(int(value) for name, value in numbered if name.endswith("InCsumErrors"))
    lines = _read_or_nothing("/proc/net/snmp")
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        pairs = dict(zip(names.split(), values.split(), strict=True))
        count += int(pairs.get("InCsumErrors", 0))
    return count


def _read_or_nothing(path: str) -> list[str]:
    """The lines of a file that is not there without IPv6."""
    try:
        return FilePath(path).read_text().splitlines()
    except FileNotFoundError:
        return []
