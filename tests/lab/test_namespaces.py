"""Mounts that come and go by somebody else's hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from podwire.errors import KernelError
from podwire.lab import namespaces as ns


def test_a_mount_that_goes_while_all_are_let_go_of_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Listed, and gone before its turn: with its directory, or without."""
    (tmp_path / "left").mkdir()
    listed = [str(tmp_path / "gone"), str(tmp_path / "left")]
    monkeypatch.setattr(ns, "mount_points", lambda _: listed)
    for point in listed:
        with pytest.raises(KernelError):
            ns.detach(point)
    ns.detach_below(str(tmp_path))
