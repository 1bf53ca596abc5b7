"""Namespaces: opened by path, entered, and claimed by one process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from podwire.errors import KernelError
from podwire.kernel import netns
from tests.conftest import Namespace

pytestmark = pytest.mark.root


def test_a_name_is_claimed_by_one_holder_in_each_namespace(
    inside: Namespace, make_namespace: Callable[[], Namespace]
) -> None:
    first = netns.claim("podwire-test", 0)
    assert first is not None
    assert netns.claim("podwire-test", 0) is None
    fd = netns.open_netns(make_namespace().path)
    with netns.entered(fd):
        elsewhere = netns.claim("podwire-test", 0)
    os.close(fd)
    assert elsewhere is not None
    elsewhere.close()
    first.close()
    again = netns.claim("podwire-test", 0)
    assert again is not None
    again.close()


def test_a_namespace_is_known_by_its_number(make_namespace: Callable[[], Namespace]) -> None:
    one, other = make_namespace(), make_namespace()
    fds = [netns.open_netns(place.path) for place in (one, one, other)]
    numbers = [netns.netns_inode(fd) for fd in fds]
    for fd in fds:
        os.close(fd)
    assert numbers[0] == numbers[1] != numbers[2]
    assert one.run("readlink /proc/self/ns/net").strip() == f"net:[{numbers[0]}]"


def test_what_is_no_namespace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="No such file"):
        netns.open_netns(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(KernelError, match="is not a network namespace"):
        netns.open_netns(tmp_path / "file")
    for path in (tmp_path, "/dev/null", "/proc/self/ns/mnt"):
        with pytest.raises(KernelError, match="is not a network namespace"):
            netns.open_netns(path)


def test_entering_ends_with_the_block(namespace: Namespace) -> None:
    home = Path("/proc/thread-self/ns/net").stat().st_ino
    fd = netns.open_netns(namespace.path)
    with netns.entered(fd):
        assert Path("/proc/thread-self/ns/net").stat().st_ino == os.fstat(fd).st_ino != home
    assert Path("/proc/thread-self/ns/net").stat().st_ino == home
    os.close(fd)


def test_what_is_raised_in_a_new_namespace_is_raised_here() -> None:
    def fail() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        netns.in_new_namespace(fail)
