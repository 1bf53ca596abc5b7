"""A disk that is full: pods are deleted all the same, and no address is handed out twice."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cni.conftest import Node

pytestmark = pytest.mark.root


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Where the node's database is, with room for little more."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def fill(disk: Path) -> Path:
    """Take all the room there is; the file that has it."""
    taken = disk / "taken"
    with taken.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(512))
    return taken


def test_pods_are_deleted_where_nothing_can_be_written(
    small_disk: Path, make_node: Callable[..., Node], make_pod: Callable[[], str]
) -> None:
    node, netns = make_node("10.244.1.0/29"), [make_pod() for _ in range(4)]
    for number, path in enumerate(netns):
        node.add(f"pod{number}", path)
    taken = fill(small_disk)

    for number in range(3):
        node.delete(f"pod{number}", netns[number])
    answer = node.cni("ADD", "new", netns[0])
    assert answer.error[0] == 104
    assert "make room on the disk" in answer.json["details"]

    # What nobody has heard of is seen at the next start, even if the disk is full still.
    subprocess.run(["ip", "netns", "del", Path(netns[0]).name], check=True)
    node.restart(kill=True)
    assert [link["ifname"] for link in node.links()]
    node.delete("pod3", netns[3])
    taken.unlink()
    for number in (1, 2, 3):
        node.delete(f"pod{number}", netns[number])
        assert node.add(f"again{number}", netns[number])["ips"]
    node.restart(kill=True)
    assert len(node.links()) == 3
