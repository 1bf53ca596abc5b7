"""An operator of a running agent, and what the kernel holds for its sessions."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from podwire.model.probe import Probe, ProbeMatch
from podwire.trace.connection import Connection
from podwire.trace.wire import Observe, Prepare

from ..e2e.waiting import until
from .conftest import AgentProcess

#: Nobody has it, and the underlay of the tests' agents is on the way there.
NOWHERE = "172.18.0.99"


@asynccontextmanager
async def connected(agent: AgentProcess) -> AsyncIterator[Connection]:
    """A connection to the agent's operator socket."""
    reader, writer = await asyncio.open_unix_connection(agent.home / "run" / "operator.sock")
    connection = await Connection.open(reader, writer, agent="the agent")
    try:
        yield connection
    finally:
        await connection.close()


async def prepare(connection: Connection, timeout_s: float = 60.0) -> ProbeMatch:
    """Have a probe ready that nobody will answer; what its packets are known by."""
    probe = Probe(protocol="udp", target=NOWHERE, port=9, timeout_s=timeout_s)
    prepared = await connection.call(Prepare(id=0, probe=probe))
    return ProbeMatch(
        protocol="udp",
        source=prepared.source,
        target=NOWHERE,
        ident=prepared.ident,
        port=9,
        neighbors=(NOWHERE,),
    )


async def observe(connection: Connection, match: ProbeMatch) -> tuple[str, ...]:
    """Watch with every tap there is; the notes about those that could not be opened."""
    return (await connection.call(Observe(id=0, match=match))).notes


def left(agent: AgentProcess) -> dict[str, str]:
    """What there is in the agent's namespace that only a session makes, by what it is."""
    found = {
        "packet sockets": agent.namespace.run("tail -n +2 /proc/net/packet"),
        "sockets of probes": agent.namespace.run("ss -Huan 'dport = 9'; ss -Hwan"),
        "nft tables": agent.namespace.run("nft list tables | grep podwire_trace; true"),
    }
    assert agent.process is not None
    if agent.process.poll() is None:
        found["eBPF"] = "\n".join(_ebpf(agent.process.pid))
    return {what: text for what, text in found.items() if text.strip()}


def _ebpf(pid: int) -> list[str]:
    links = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            links.append(str(fd.readlink()))
    return [link for link in links if "bpf" in link]


def nothing_left(agent: AgentProcess) -> None:
    """Wait until sessions have left nothing."""
    until(lambda: not left(agent), "nothing is left")


def raw(agent: AgentProcess) -> socket.socket:
    """A bare connection to the operator socket."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(60)
    sock.connect(str(agent.home / "run" / "operator.sock"))
    return sock
