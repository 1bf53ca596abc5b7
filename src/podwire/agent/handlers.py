"""What the agent does for each request of an operator (`podwire.trace.wire`).

What lives here: one session's requests, each a method by its type. What does not: sockets and
frames (`operator`), and how anything is seen, sent, decided or explained (`podwire.trace`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from podwire.errors import PodwireError
from podwire.trace.wire import VERSION, Done, Hold, Request, Response, Welcome

if TYPE_CHECKING:
    from podwire.agent.daemon import Agent

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Sender(Protocol):
    """Where a session's messages go. `ahead`: the operator does not keep up with them."""

    def send(self, message: Response) -> None: ...
    @property
    def ahead(self) -> bool: ...


class Handlers:
    """One session's requests. What they open is closed with `stack`."""

    def __init__(self, agent: Agent, sender: Sender, stack: contextlib.AsyncExitStack) -> None:
        self._agent = agent
        self._sender = sender
        self._stack = stack
        self._by_type: dict[type, Callable[[Any], Awaitable[Response]]] = {
            Hold: self._hold,
        }

    def welcome(self) -> Welcome:
        """The greeting: this node, and its part in the pod network."""
        agent = self._agent
        network = agent.network
        about: dict[str, Any] = {}
        if network is not None:
            about = {
                "subnets": tuple(map(str, network.lease.subnets)),
                "underlay": str(network.underlay.ip),
                "bridge": network.bridge,
                "tunnel": network.vxlan_dev,
                "tunnel_port": network.vxlan_port,
                "mtu": network.mtu,
            }
        return Welcome(
            version=VERSION,
            node=agent.config.node_name,
            clock=_BOOT_ID.read_text().strip(),
            time_ns=time.time_ns(),
            not_ready=agent.not_ready or "",
            network=tuple(map(str, agent.config.network)),
            held=agent.held,
            **about,
        )

    async def handle(self, request: Request) -> Response:
        """Do it. Raises PodwireError where it can't be done."""
        handler = self._by_type.get(type(request))
        if handler is None:
            raise PodwireError(f"this agent does not know {type(request).__name__}")
        return await handler(request)

    async def _hold(self, request: Hold) -> Done:
        self._agent.hold(request.on)
        return Done(to=request.id)
