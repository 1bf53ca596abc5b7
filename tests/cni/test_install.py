"""The executable and the conflist on disk: whole or not at all, untouched when they are right."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from podwire.cli.cni import cni
from podwire.cni import install
from podwire.errors import InputError, PodwireError

VERSION_CALL = {"CNI_COMMAND": "VERSION"}


def call(executable: Path, **environment: str) -> dict[str, object]:
    done = subprocess.run([executable], input=b"{}", env=environment, capture_output=True)
    body: dict[str, object] = json.loads(done.stdout)
    return body


@pytest.fixture(params=["c", "python"])
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(install, "_compiled", lambda: None)
    kind: str = request.param
    return kind


def test_the_conflist_suits_old_and_new_runtimes(tmp_path: Path) -> None:
    assert install.write_conflist(tmp_path)
    document = json.loads((tmp_path / "10-podwire.conflist").read_text())
    assert document["cniVersion"] == "1.0.0"
    assert document["cniVersions"] == ["1.0.0", "1.1.0"]
    assert [plugin["type"] for plugin in document["plugins"]] == ["podwire"]


def test_install_writes_both_and_nothing_else(tmp_path: Path, compiler: str) -> None:
    bin_dir, conf_dir = tmp_path / "bin", tmp_path / "conf"
    assert install.install(bin_dir, conf_dir) == [
        bin_dir / "podwire",
        conf_dir / "10-podwire.conflist",
    ]
    assert list(bin_dir.iterdir()) == [bin_dir / "podwire"]
    assert list(conf_dir.iterdir()) == [conf_dir / "10-podwire.conflist"]
    assert (bin_dir / "podwire").stat().st_mode & 0o777 == 0o755
    assert (conf_dir / "10-podwire.conflist").stat().st_mode & 0o777 == 0o644
    assert call(bin_dir / "podwire", **VERSION_CALL)["cniVersion"] == "1.1.0"


def test_install_twice_touches_nothing(tmp_path: Path, compiler: str) -> None:
    install.install(tmp_path, tmp_path)
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(tmp_path.iterdir())]
    assert install.install(tmp_path, tmp_path) == []
    after = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(tmp_path.iterdir())]
    assert after == before


def test_what_differs_is_replaced_while_in_use(tmp_path: Path, compiler: str) -> None:
    (tmp_path / "podwire").write_text("old")
    with (tmp_path / "podwire").open() as running:
        install.install(tmp_path, tmp_path)
        assert running.read() == "old"
    (tmp_path / "podwire").chmod(0o700)
    assert install.install(tmp_path, tmp_path) == [tmp_path / "podwire"]


@pytest.mark.parametrize("path", ["/run/other/cni.sock", "/" + "x" * 106])
def test_another_socket(tmp_path: Path, compiler: str, path: str) -> None:
    install.install_executable(tmp_path, Path(path))
    message = call(tmp_path / "podwire", CNI_COMMAND="ADD")["msg"]
    assert str(message).startswith(f"podwire agent at {path}: No such file")


@pytest.mark.parametrize("path", ["relative.sock", "/" + "x" * 107])
def test_a_socket_path_that_no_socket_can_have(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match="socket: "):
        install.install_executable(tmp_path, Path(path))


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PodwireError, match="cannot write"):
        install.write_conflist(tmp_path / "file" / "dir")


def test_the_commands(tmp_path: Path) -> None:
    options = ["--bin-dir", str(tmp_path / "bin"), "--conf-dir", str(tmp_path / "conf")]
    runner = CliRunner()
    first = runner.invoke(cni, ["install", *options])
    assert first.output == (
        f"{tmp_path}/bin/podwire written\n{tmp_path}/conf/10-podwire.conflist written\n"
    )
    assert runner.invoke(cni, ["install", *options]).output == "installed already\n"
    assert "conflist deleted" in runner.invoke(cni, ["uninstall", *options]).output
    assert runner.invoke(cni, ["uninstall", *options]).output == "not installed\n"
    assert not any((tmp_path / "bin").iterdir())
    assert not any((tmp_path / "conf").iterdir())


def test_status_without_an_agent(tmp_path: Path) -> None:
    result = CliRunner().invoke(cni, ["status", "--socket", str(tmp_path / "cni.sock")])
    assert isinstance(result.exception, PodwireError)
    assert "No such file" in result.exception.message


_BUILD = """
import sys
from pathlib import Path
from podwire.cni import install
install._cache_dirs = lambda: iter([Path(sys.argv[1])])
sys.stdout.buffer.write(install._compiled())
"""


@pytest.mark.root
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_nodes_of_one_machine_may_build_it_at_once(tmp_path: Path) -> None:
    # Each has the process id 1, as agents of lab nodes may.
    line = ["unshare", "--pid", "--fork", sys.executable, "-c", _BUILD, str(tmp_path)]
    builds = [subprocess.Popen(line, stdout=subprocess.PIPE) for _ in range(4)]
    built = {build.communicate()[0] for build in builds}
    assert {build.returncode for build in builds} == {0}
    (kept,) = tmp_path.iterdir()
    assert built == {kept.read_bytes()} and kept.stat().st_mode & 0o777 == 0o755
