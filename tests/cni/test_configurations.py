"""The files in /etc/cni/net.d: which count, in which order, and what is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from podwire.cni.configurations import configurations


def test_files_are_taken_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "20-b.conflist").write_text('{"plugins": [{"type": "b"}, {"type": "portmap"}]}')
    (tmp_path / "10-a.conf").write_text('{"type": "a"}')
    (tmp_path / "00-notes.txt").write_text("not one")
    found = [(one.path.name, one.plugins) for one in configurations(tmp_path)]
    assert found == [("10-a.conf", ("a",)), ("20-b.conflist", ("b", "portmap"))]
    assert list(configurations(tmp_path / "none")) == []


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "{}", '{"type": 7}', "[" * 5000),
        *('{"plugins": []}', '{"plugins": [7]}', '{"plugins": [{}]}'),
        '{"plugins": [{"type": "a"}, {"type": ""}]}',
    ],
)
def test_what_names_no_plugin_is_broken(tmp_path: Path, content: str) -> None:
    (tmp_path / "10-a.conflist").write_text(content)
    (one,) = configurations(tmp_path)
    assert one.plugins == ()


def test_a_directory_is_no_configuration_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "10-a.conf").mkdir()
    (one,) = configurations(tmp_path)
    assert one.plugins == ()
