"""`podwire agent relay`: standard streams to the agent's socket, for whoever may exec in its pod.

What lives here: bytes from one descriptor to the other, both ways, until one side ends.
"""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

from podwire.errors import AgentAwayError

_CHUNK_BYTES = 64 * 1024
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


def relay(path: Path, source: int, target: int) -> None:
    """Connect to the agent at `path`; `source` is where its operator writes, `target` reads.

    Raises AgentAwayError where no agent listens.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as agent:
        try:
            agent.connect(str(path))
        except OSError as error:
            raise AgentAwayError(
                f"no agent listens at {path}: {error.strerror}", remedy="is it running?"
            ) from error
        try:
            _pump(agent.fileno(), source, target)
        except (BrokenPipeError, ConnectionError):
            return


def _pump(agent: int, source: int, target: int) -> None:
    """Until either has nothing more to say, or nobody reads."""
    to = {source: agent, agent: target}
    poll = select.poll()
    for descriptor in to:
        poll.register(descriptor, _READABLE)
    # Nothing is read from `target`; that it has no reader any more shows as an error.
    poll.register(target, 0)
    while True:
        for descriptor, _ in poll.poll():
            data = os.read(descriptor, _CHUNK_BYTES) if descriptor in to else b""
            if not data:
                return
            _write_all(to[descriptor], data)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
