"""Puts the CNI executable and its conflist where a container runtime looks for them.

What lives here: building the executable and writing two files. What does not: deciding when (the
agent writes the conflist once pods can be wired, since runtimes take its presence for that).

Both are written under a temporary name in the same directory and renamed: a runtime that watches
the directory never reads half a file, and some miss a file that is moved in from elsewhere. What is
there already as it should be is not touched.

The conflist says 1.0.0, and 1.0.0 and 1.1.0 in `cniVersions`: libcni before 1.2 (containerd 1.6,
Podman 4 of Debian 12) knows neither `cniVersions` nor 1.1.0 and takes the first; later ones take
the highest, and with it STATUS and GC.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from podwire.cni import shim
from podwire.cni.configurations import configurations
from podwire.cni.types import PLUGIN_TYPE
from podwire.errors import InputError, PodwireError, UnsupportedError
from podwire.files import write_atomically

CONFLIST_NAME = "10-podwire.conflist"
NETWORK_NAME = "podwire"
DEFAULT_SOCKET = Path(shim.SOCKET_PATH)

_SOURCE = Path(__file__).with_name("shim") / "podwire-cni.c"
_SLOT = b"PODWIRE_CNI_SOCKET="
#: Size of `sun_path` (linux/un.h), which is also that of the path in the executable.
_SOCKET_PATH_MAX = 108


def conflist() -> bytes:
    """The network configuration list."""
    document = {
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": NETWORK_NAME,
        "plugins": [{"type": PLUGIN_TYPE, "capabilities": {"ips": True, "mac": True}}],
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def install(bin_dir: Path, conf_dir: Path, socket_path: Path = DEFAULT_SOCKET) -> list[Path]:
    """Write the executable, then the conflist that names it; the files that have changed.

    Raises InputError for a socket path that is too long, else PodwireError.
    """
    changed = []
    if install_executable(bin_dir, socket_path):
        changed.append(bin_dir / PLUGIN_TYPE)
    if write_conflist(conf_dir):
        changed.append(conf_dir / CONFLIST_NAME)
    return changed


def uninstall(bin_dir: Path, conf_dir: Path) -> list[Path]:
    """Delete the conflist, then the executable; the files that were there."""
    removed = []
    if remove_conflist(conf_dir):
        removed.append(conf_dir / CONFLIST_NAME)
    if remove_executable(bin_dir):
        removed.append(bin_dir / PLUGIN_TYPE)
    return removed


def write_conflist(conf_dir: Path) -> bool:
    """Announce the network to runtimes; False where that was done already. Raises PodwireError."""
    return write_atomically(conf_dir / CONFLIST_NAME, conflist(), parents=True)


def remove_conflist(conf_dir: Path) -> bool:
    """Take the announcement back; False where there was none. Raises PodwireError."""
    return _remove(conf_dir / CONFLIST_NAME)


def chained_with(plugin: str, conf_dir: Path) -> Path | None:
    """The first configuration list that runs both Podwire and the plugin of that type."""
    both = {PLUGIN_TYPE, plugin}
    return next((one.path for one in configurations(conf_dir) if both <= {*one.plugins}), None)


def install_executable(bin_dir: Path, socket_path: Path = DEFAULT_SOCKET) -> bool:
    """Write the executable, which will talk to `socket_path`; False where it was there already.

    Raises InputError for a path that does not fit a socket address, else PodwireError.
    """
    path = os.fsencode(socket_path)
    if len(path) >= _SOCKET_PATH_MAX or not socket_path.is_absolute():
        raise InputError(
            f"{socket_path} is not an absolute path of less than {_SOCKET_PATH_MAX} bytes",
            field="socket",
        )
    binary = _compiled()
    if binary is not None:
        executable = _with_socket(binary, path)
    else:
        executable = _python_executable(socket_path)
    return write_atomically(bin_dir / PLUGIN_TYPE, executable, 0o755, parents=True)


def remove_executable(bin_dir: Path) -> bool:
    """Delete the executable; False where there was none. Raises PodwireError."""
    return _remove(bin_dir / PLUGIN_TYPE)


def _with_socket(binary: bytes, path: bytes) -> bytes:
    """The executable with another default socket, see `socket_path` in the C source."""
    slot = binary.index(_SLOT + b"/") + len(_SLOT)
    return binary[:slot] + path.ljust(_SOCKET_PATH_MAX, b"\0") + binary[slot + _SOCKET_PATH_MAX :]


def _python_executable(socket_path: Path) -> bytes:
    """The executable in Python: `shim.py` behind an interpreter that needs no environment."""
    source = Path(shim.__file__).read_text()
    line = f"SOCKET_PATH = {json.dumps(shim.SOCKET_PATH)}"
    if line not in source:
        raise PodwireError(f"{shim.__file__} has no line {line}")
    source = source.replace(line, f"SOCKET_PATH = {str(socket_path)!r}")
    # -I: no environment, no user's packages; -S: no site, which is most of the time to start.
    return f"#!{Path(sys.executable).resolve()} -IS\n{source}".encode()


def _compiled() -> bytes | None:
    """The C executable, built on the first call on a machine; None without a C compiler."""
    version = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]
    name = f"podwire-cni-{os.uname().machine}-{version}"
    for directory in _cache_dirs():
        built = directory / name
        if built.exists():
            return built.read_bytes()
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    for directory in _cache_dirs():
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # Of its own, by a name that is nobody's: agents of several nodes may build at once, and
            # in PID namespaces of their own they have the same process id.
            room = tempfile.TemporaryDirectory(prefix=f".{name}.", dir=directory)
        except OSError:
            continue
        with room:
            made = Path(room.name, name)
            _compile(compiler, made)
            binary = made.read_bytes()
            made.replace(directory / name)
        return binary
    raise PodwireError("the CNI executable cannot be built: no directory to write it to")


def _cache_dirs() -> Iterator[Path]:
    """Where the built executable is kept: beside the source, or where the package is read-only."""
    yield _SOURCE.with_name("build")
    yield Path("/var/lib/podwire/build")


def _compile(compiler: str, target: Path) -> None:
    command = [compiler, "-static", "-Os", "-s", "-Wall", "-o", str(target), str(_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise UnsupportedError(
            f"the CNI executable does not compile: {done.stderr.strip()}",
            remedy="install the C library's headers and static library (apt install libc6-dev)",
        )


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise PodwireError(f"cannot delete {path}: {error.strerror or error}") from error
    return True
