"""Connections to agents: those of a lab, of a cluster, and this host's own.

What lives here: which agent a command means, the way to it, and errors that say what is missing.

    a lab             its agents' Unix sockets, in the lab's directory; takes root
    a cluster         exec of `podwire agent relay` in the node's agent pod: who may, RBAC decides
    neither a node    this host's own agent, by its Unix socket; takes root
    nor a lab named
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podwire.cli.context import Target, target
from podwire.errors import AgentAwayError, ForbiddenError, InputError, PodwireError
from podwire.trace.connection import Connection

if TYPE_CHECKING:
    from podwire.cluster.kube import KubeClient
    from podwire.lab.registry import LabInfo

HOST_SOCKET = Path("/run/podwire/operator.sock")
RELAY = ("podwire", "agent", "relay")

_NAMESPACE = "kube-system"
_LABEL = "app=podwire"
_CONTAINER = "agent"
#: The API server, the runtime and Python are on the way to an agent in a pod.
_RELAY_WELCOME_S = 10.0


@contextlib.asynccontextmanager
async def agents(which: Target | None = None) -> AsyncIterator[Agents]:
    """The agents of the running command's cluster. What is dialled is closed with the block."""
    async with contextlib.AsyncExitStack() as stack:
        yield Agents(which or target(), stack)


class Agents:
    """The way to a cluster's API and to its agents."""

    def __init__(self, which: Target, stack: contextlib.AsyncExitStack) -> None:
        self._target = which
        self._stack = stack
        self._lab = which.lab_info()
        self._client: KubeClient | None = None
        if self._lab is not None and not os.access(self._lab.dir, os.X_OK):
            raise PodwireError(f"lab {self._lab.name} belongs to root", remedy="use sudo")

    @property
    def client(self) -> KubeClient:
        """The API's client, opened. Raises `InputError` where no cluster is configured."""
        if self._client is None:
            from podwire.cluster.kube import ClientConfig, KubeClient

            if self._lab is not None:
                # Whoever may reach its agents needs no credentials, nor TLS.
                config = ClientConfig(server=f"unix://{self._lab.api_socket}")
            else:
                config = self._target.config()
            self._client = KubeClient(config).open()
            self._stack.push_async_exit(self._client)
        return self._client

    async def all_nodes(self) -> list[str | None]:
        """Every node of the lab or cluster; None for this host, where no cluster is named."""
        if self._lab is not None:
            # From the lab's own record, so that a lab whose API is down can be asked about.
            try:
                record = self._lab.record()
            except PermissionError as error:
                text = f"the agents of lab {self._lab.name} may be asked by root only"
                raise PodwireError(text, remedy="use sudo") from error
            return [node.name for node in record.nodes] if record is not None else []
        if self._target.kubeconfig is None and HOST_SOCKET.exists():
            return [None]
        from podwire.cluster.kube import NODES

        listed = await self.client.list(NODES)
        return sorted(node["metadata"]["name"] for node in listed.items)

    async def dial(self, node: str | None = None) -> Connection:
        """A connection to the agent of `node`; without one, of this host.

        Raises AgentAwayError where it can't be reached, InputError where there is no such node or
        none is named and several could be meant, PodwireError for missing rights.
        """
        if self._lab is not None:
            connection = await _dial_socket(*_in_lab(self._lab, node))
        elif node is None:
            if self._target.kubeconfig is not None:
                raise InputError("which node's agent?", field="--node", remedy="name one")
            connection = await _dial_socket(HOST_SOCKET, "the agent of this host")
        else:
            connection = await _dial_pod(self.client, node)
        self._stack.push_async_callback(connection.close)
        return connection


def _in_lab(lab: LabInfo, node: str | None) -> tuple[Path, str]:
    """A lab's agent: its socket, and how errors call it."""
    if node is None:
        raise InputError(
            f"which node of lab {lab.name}?", field="--node", remedy="podwire get nodes lists them"
        )
    # `node` may come from anywhere: it is to be one step below the directory of nodes.
    known = "/" not in node and node not in ("", ".", "..")
    socket = lab.node_dir(node) / "run" / "podwire" / "operator.sock"
    with contextlib.suppress(PermissionError):  # to connect will fail, and say so
        known = known and lab.node_dir(node).is_dir()
    if not known:
        raise InputError(
            f"lab {lab.name} has no node {node!r}",
            field="node",
            remedy="podwire get nodes lists them",
        )
    return socket, f"the agent of {node}"


async def _dial_socket(path: Path, agent: str) -> Connection:
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except PermissionError as error:
        raise PodwireError(
            f"{agent} may be asked by root only ({path})", remedy="use sudo"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET):
            raise PodwireError(f"{agent}: {path}: {error.strerror or error}") from error
        raise AgentAwayError(
            f"{agent} does not run: {path}: {os.strerror(error.errno)}",
            remedy="is `podwire agent` running there? In a lab, `podwire lab status` tells",
        ) from error
    return await Connection.open(reader, writer, agent=agent)


async def _dial_pod(client: KubeClient, node: str) -> Connection:
    from podwire.cluster.kube.exec_stream import ExecStream

    namespace, pod, container = await _agent_pod(client, node)
    try:
        session = await client.pod_exec(pod, namespace, RELAY, container=container, stdin=True)
    except ForbiddenError as error:
        raise PodwireError(
            f"not allowed to ask the agent of {node}: {error.message}",
            remedy=f"it takes the right to create pods/exec in namespace {namespace}",
        ) from error
    stream = ExecStream(session)
    agent = f"the agent of {node} (pod {namespace}/{pod})"
    try:
        return await Connection.open(stream.reader, stream, agent=agent, welcome_s=_RELAY_WELCOME_S)
    except AgentAwayError as error:
        if stream.complaint:
            raise AgentAwayError(f"{agent}: {stream.complaint}", remedy=error.remedy) from error
        raise


async def _agent_pod(client: KubeClient, node: str) -> tuple[str, str, str | None]:
    """Namespace and name of the pod that `node`'s agent is in, and its container.

    Where the DaemonSet was put elsewhere, in whichever namespace it is found.
    """
    from podwire.cluster.kube import PODS

    selector = f"spec.nodeName={node}"
    for namespace in (_NAMESPACE, None):
        try:
            found = await client.list(
                PODS, namespace, label_selector=_LABEL, field_selector=selector
            )
        except ForbiddenError as error:
            raise PodwireError(
                f"not allowed to look for the agent of {node}: {error.message}",
                remedy="it takes the rights to list pods and to create pods/exec",
            ) from error
        pods = [pod for pod in found.items if namespace is not None or _of_daemon_set(pod)]
        running = [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Running"]
        if running:
            metadata = running[0]["metadata"]
            return metadata["namespace"], metadata["name"], _container(running[0])
        if pods:
            name = pods[0]["metadata"]["name"]
            phase = (pods[0].get("status") or {}).get("phase", "unknown")
            raise AgentAwayError(
                f"the agent of {node} does not run: pod {name} is {phase}",
                remedy=f"kubectl describe pod -A -l {_LABEL} tells why",
            )
    raise AgentAwayError(
        f"there is no agent on node {node}: no pod with label {_LABEL} runs there",
        remedy="does the node exist, and does the DaemonSet tolerate its taints?",
    )


def _container(pod: dict[str, Any]) -> str | None:
    """The agent's container, where there are others beside it; None leaves it to the server."""
    names = [one["name"] for one in (pod.get("spec") or {}).get("containers") or ()]
    return _CONTAINER if _CONTAINER in names else None


def _of_daemon_set(pod: dict[str, Any]) -> bool:
    """Whether a controller made it: not whoever may create a pod with our label somewhere."""
    owners = pod["metadata"].get("ownerReferences") or []
    return any(owner.get("kind") == "DaemonSet" and owner.get("controller") for owner in owners)
