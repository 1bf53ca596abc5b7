"""What a lab's agents say of themselves, asked over their Unix sockets.

What lives here: the questions. What does not: waiting for an answer (`readiness`, `rollout`).
"""

from __future__ import annotations

import http.client
import re
import socket
from pathlib import Path

from podwire.lab.registry import LabInfo

_TIMEOUT_S = 5.0
_CONNECTED = re.compile(r"^podwire_api_connected 1(\.0)?$", re.MULTILINE)


def not_ready(lab: LabInfo, node: str) -> str | None:
    """Why a node's agent cannot wire pods; None where it can."""
    try:
        status, text = _get(lab, node, "/readyz")
    except (OSError, http.client.HTTPException) as error:
        return f"it does not answer ({error})"
    return None if status == 200 else text.strip() or f"it answers {status}"


def not_following(lab: LabInfo, node: str) -> str | None:
    """Why a node's agent is not at work: it can't wire pods, or does not hear of changes in its
    store; None where it is."""
    problem = not_ready(lab, node)
    if problem is not None:
        return problem
    return None if is_connected(lab, node) else "it is not connected to its store"


def is_connected(lab: LabInfo, node: str) -> bool:
    """Whether a node's agent watches its store, as far as it knows."""
    try:
        _, text = _get(lab, node, "/metrics")
    except (OSError, http.client.HTTPException):
        return False
    return _CONNECTED.search(text) is not None


def _get(lab: LabInfo, node: str, path: str) -> tuple[int, str]:
    connection = UnixConnection(lab.node_dir(node) / "run/podwire/agent.sock")
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float = _TIMEOUT_S) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
