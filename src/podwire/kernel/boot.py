"""Which boot of which machine this is."""

from __future__ import annotations

from pathlib import Path


def boot_id() -> str:
    """The random id of this boot, the same in every namespace (random(4)). Raises OSError."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
