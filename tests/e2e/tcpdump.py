"""tcpdump(8) at interfaces of a lab: what it says crossed them, as a witness against ourselves."""

from __future__ import annotations

import re
import signal
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from podwire.lab import LabPod
from podwire.lab.kubelet.records import PodRecord

_NANOSECONDS = 0xA1B23C4D  # magic of a pcap file with such times


def namespace_of(pod: LabPod) -> Path:
    """File of a pod's network namespace, as the host sees it."""
    uid = pod.object["metadata"]["uid"]
    record = pod.node.directory / "var-lib/kubelet/pods" / uid / "record.json"
    sandbox = msgspec.json.decode(record.read_bytes(), type=PodRecord).sandbox
    assert sandbox is not None
    return Path(f"/proc/{pod.node.pid}/root{sandbox.netns}")


@dataclass(frozen=True)
class Captured:
    """A frame: `size` on the wire, `time_ns` since the epoch."""

    time_ns: int
    size: int
    data: bytes


class Tcpdump:
    """A running tcpdump at one interface; `frames` ends it."""

    def __init__(self, namespace: Path, interface: str, expression: str) -> None:
        self.interface = interface
        # Each packet is written at once; all of it, with nanoseconds, without looking up names.
        options = ["-U", "--immediate-mode", "-s", "0", "--time-stamp-precision=nano", "-n"]
        tcpdump = ["tcpdump", "-i", interface, *options, "-w", "-", expression]
        # Without a PID namespace to enter, nsenter becomes the command, which gets our signals.
        self._process = subprocess.Popen(
            ["nsenter", f"--net={namespace}", "--", *tcpdump],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def wait_listening(self) -> None:
        """Wait until it hears. Its own words are the only sign of that."""
        assert self._process.stderr is not None
        said = b""
        while b"listening on" not in said:
            line = self._process.stderr.readline()
            assert line, f"tcpdump at {self.interface}: {said.decode()}"
            said += line

    def frames(self) -> list[Captured]:
        """End it; what it has seen, in its order."""
        self._process.send_signal(signal.SIGINT)
        data, errors = self._process.communicate(timeout=60)
        received = re.search(rb"(\d+) packets? captured", errors)
        found = list(_read(data))
        assert received is None or len(found) == int(received[1])
        return found

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def _read(data: bytes) -> Iterator[Captured]:
    """The frames of a pcap file (pcap-savefile(5))."""
    order = "<" if struct.unpack_from("<I", data)[0] == _NANOSECONDS else ">"
    assert struct.unpack_from(f"{order}I", data)[0] == _NANOSECONDS
    at = 24
    while at < len(data):
        seconds, nanoseconds, kept, size = struct.unpack_from(f"{order}IIII", data, at)
        at += 16
        yield Captured(seconds * 10**9 + nanoseconds, size, data[at : at + kept])
        at += kept


@contextmanager
def tcpdumps(where: Sequence[tuple[Path, str]], expression: str) -> Iterator[list[Tcpdump]]:
    """One at each of these interfaces; all of them hear when the block begins."""
    with ExitStack() as stack:
        made = []
        for namespace, interface in where:
            made.append(Tcpdump(namespace, interface, expression))
            stack.callback(made[-1].kill)
        for one in made:
            one.wait_listening()
        yield made
