"""Running one CNI plugin: environment and standard input in, result or error out.

Standard input and output are files in memory (memfd), not pipes: nothing can block, so no thread
has to read.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from podwire.decoding import from_json
from podwire.lab.cni_network import CniError, Json

_TIMEOUT_S = 120.0  # the kubelet's --runtime-request-timeout


async def execute(
    executable: Path, environment: Mapping[str, str], stdin: bytes
) -> tuple[int, bytes, bytes]:
    """Run a plugin to its end: exit code (negative: signal), standard output, standard error."""
    files = [os.memfd_create(f"cni-{name}") for name in ("stdin", "stdout", "stderr")]
    try:
        os.write(files[0], stdin)
        os.lseek(files[0], 0, os.SEEK_SET)
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - returns once executed, waits for nothing
                [executable],
                stdin=files[0],
                stdout=files[1],
                stderr=files[2],
                env=dict(environment),
                cwd="/",
            )
        except OSError as error:
            raise CniError(f"cannot execute {executable}: {error.strerror}") from error
        code = await _ended(process, executable)
        return code, _content(files[1]), _content(files[2])
    finally:
        for fd in files:
            os.close(fd)


async def _ended(process: subprocess.Popen[bytes], executable: Path) -> int:
    """Wait for a plugin's end without a thread; kill it when it takes too long or nobody waits."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    pidfd = os.pidfd_open(process.pid)
    loop.add_reader(pidfd, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), _TIMEOUT_S)
    except TimeoutError:
        raise CniError(f"{executable} did not finish within {_TIMEOUT_S:.0f} s") from None
    finally:
        loop.remove_reader(pidfd)
        if not ended.is_set():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        process.wait()
    return process.returncode


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def plugin_error(plugin: str, command: str, code: int, output: bytes, errors: bytes) -> CniError:
    """What the plugin says, or how it ended where it says nothing that CNI knows."""
    said: Json = {}
    with suppress(msgspec.DecodeError):
        said = from_json(output, Json)
    message = str(said.get("msg") or "")
    if said.get("details"):
        message += f": {said['details']}"
    if not message:
        ending = f"exit status {code}" if code > 0 else f"signal {-code}"
        trace = errors.decode(errors="replace").strip().rpartition("\n")[2]
        message = f"netplugin failed ({ending}): {trace or 'no error message'}"
    verb = {"ADD": "add", "DEL": "delete"}.get(command, command.lower())
    given = said.get("code")
    return CniError(
        f'plugin type="{plugin}" failed ({verb}): {message}',
        code=given if isinstance(given, int) else None,
    )
