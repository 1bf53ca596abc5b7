"""What a running agent says about itself, asked over its Unix socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from podwire.lab.agents import UnixConnection

#: For a machine that has much else to do.
_TIMEOUT_S = 60.0


class AgentHttp:
    """The agent that listens on `path`; on the socket are all paths of its HTTP face."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, path: str) -> tuple[int, str]:
        """Status and body. Raises OSError where no agent answers."""
        connection = UnixConnection(self._path, _TIMEOUT_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    @property
    def not_ready(self) -> str | None:
        """Why pods can't be wired, None when they can."""
        try:
            status, text = self.get("/readyz")
        except OSError as error:
            return f"no agent: {error}"
        return None if status == 200 else text.strip()

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")

    def plan(self) -> dict[str, Any]:
        """Desired entries and changes, as `podwire plan -o json` has them."""
        document: dict[str, Any] = json.loads(self.get("/plan")[1])
        return document
