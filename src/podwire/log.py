"""Structured logging: one event a line, `key=value` pairs after a short message (logfmt).

Modules log through the standard library with fields in `extra={"f": {...}}`, for which `fields`
is the short form: `log.info("lease acquired", extra=fields(node=name, subnet=subnet))`.
"""

from __future__ import annotations

import logging
import sys
from typing import Any


def fields(**values: object) -> dict[str, Any]:
    """The `extra` of a log call."""
    return {"fields": values}


class LogfmtFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123 info agent: lease acquired node=node1 subnet=10.244.1.0/24`."""

    def format(self, record: logging.LogRecord) -> str:
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        name = record.name.rsplit(".", 1)[-1]
        line = f"{when}.{int(record.msecs):03d} {record.levelname.lower()} {name}: "
        line += record.getMessage()
        for key, value in getattr(record, "fields", {}).items():
            line += f" {key}={_quoted(str(value))}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def setup(level: str = "info") -> None:
    """Send everything from `level` up to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogfmtFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("aiohttp").setLevel(logging.WARNING)


def _quoted(text: str) -> str:
    if text and not any(char.isspace() or char in '"=' for char in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
