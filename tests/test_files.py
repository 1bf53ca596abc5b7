"""Files that are replaced as a whole."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from podwire.errors import PodwireError
from podwire.files import listen_unix, write_atomically


def test_a_file_is_written_with_its_directory_and_mode_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "made" / "here" / "subnet.env"
    assert write_atomically(path, b"A=1\n", 0o666, parents=True)
    assert path.read_bytes() == b"A=1\n"
    assert path.stat().st_mode & 0o777 == 0o666
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_as_it_should_be_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write_atomically(path, b"A=1\n")
    before = path.stat()
    assert not write_atomically(path, b"A=1\n")
    assert path.stat().st_ino == before.st_ino
    assert write_atomically(path, b"A=1\n", 0o600)
    assert path.stat().st_mode & 0o777 == 0o600


def test_whoever_has_the_old_file_open_reads_the_whole_of_it(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write_atomically(path, b"A=1\n")
    with path.open() as reader:
        assert write_atomically(path, b"A=2\n")
        assert reader.read() == "A=1\n"
    assert path.read_bytes() == b"A=2\n"


def test_what_is_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PodwireError, match=r"cannot write .*/file/subnet.env: Not a directory"):
        write_atomically(tmp_path / "file" / "subnet.env", b"")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_dead_servers_socket_is_replaced_by_one_that_only_its_owner_may_connect_to(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.sock"
    listen_unix(path, 1).close()
    with listen_unix(path, 1) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        listener.accept()[0].close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
