"""`podwire trace` as a person runs it, and what it leaves in a lab's namespaces."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from podwire.lab import Lab
from podwire.lab.places import Place
from podwire.trace.model import Hop, Trace
from podwire.trace.model import Path as TracePath
from podwire.trace.render.json import parse_json

from .waiting import until

PODWIRE = Path(sys.executable).with_name("podwire")


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str


class Tracer:
    """The command, for one lab. With a kubeconfig it does not know that it is one."""

    def __init__(self, lab: Lab, *, kubeconfig: Path | None = None) -> None:
        self._target = ["--lab", lab.name]
        if kubeconfig is not None:
            self._target = ["--kubeconfig", str(kubeconfig)]
        # A lab of the person who runs the tests is none of theirs.
        self._env = {key: value for key, value in os.environ.items() if key != "PODWIRE_LAB"}

    def command(self, *arguments: str) -> list[str]:
        return [str(PODWIRE), "trace", *self._target, *arguments]

    def run(self, *arguments: str) -> Ran:
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            env=self._env,
            timeout=60,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def trace(self, *arguments: str, code: int = 0) -> Trace:
        """The trace, which ends the command with `code`."""
        done = self.run(*arguments, "-o", "json")
        assert done.code == code, done
        return parse_json(done.out)


def spots(trace: Trace, path: TracePath | None) -> list[tuple[str, str, str]]:
    """Where a packet was: the place's name, the interface, the direction."""
    assert path is not None
    return [(trace.places[hop.place].name, hop.interface, hop.direction) for hop in path.hops]


def sizes_and_ttls(path: TracePath | None) -> list[tuple[int, int]]:
    """At each hop the bytes on the wire, and the TTL that the packet's ends see."""
    assert path is not None
    return [(hop.packet.size, ttl(hop)) for hop in path.hops]


def ttl(hop: Hop) -> int:
    return next(header.ttl for header in hop.packet.inner if hasattr(header, "ttl"))


def kinds_of_changes(path: TracePath | None) -> list[str]:
    assert path is not None
    return [change.kind for hop in path.hops for change in hop.changes]


_LEFT = {
    "packet sockets": "tail -n +2 /proc/net/packet",
    "raw sockets": "ss -Hwan",
    "nft tables": "nft list tables | grep podwire_trace",
}
_NEXT = "----"


def left(*places: Place) -> dict[str, str]:
    """What there is at these places that only a trace makes, by what it is."""
    found = {}
    script = f"; echo {_NEXT}; ".join(_LEFT.values())
    for place in places:
        texts = place.exec(["sh", "-c", script]).stdout.split(f"{_NEXT}\n")
        assert len(texts) == len(_LEFT), texts
        for what, text in zip(_LEFT, texts, strict=True):
            if text.strip():
                found[f"{what} at {place!r}"] = text
    return found


def nothing_left(*places: Place) -> None:
    """Wait until traces have left nothing there: the kernel takes a moment to close a tap."""
    until(lambda: not left(*places), "nothing is left")
