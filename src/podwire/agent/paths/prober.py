"""The clock and the sockets around the judge: peers are asked, and who is blocked is told.

All that is due is sent, and all that has come is read, in ticks: waking up costs more than sending.
Which peers are blocked is written to a file as it changes, so that an agent that is started anew
does not lead their traffic back to where it would be lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import msgspec

from podwire.agent.paths.judge import Judge
from podwire.agent.paths.targets import Key, Target
from podwire.decoding import from_json
from podwire.errors import PodwireError
from podwire.files import write_atomically
from podwire.kernel.solicit import Solicitor
from podwire.log import fields

log = logging.getLogger(__name__)

#: Ticks are at least this many intervals apart.
_TICK = 0.01


class PathState(msgspec.Struct, frozen=True):
    """What is known of VXLAN to a peer: `since` in seconds of the epoch, `text` in words."""

    blocked: bool
    text: str
    since: float
    rtt_s: float | None


class Prober:
    """Asks all peers it is given. `on_change(names)` is called with those that are blocked now and
    were not, or the other way round."""

    def __init__(
        self, interval_s: float, file: Path, on_change: Callable[[frozenset[str]], None]
    ) -> None:
        self._tick_s = _TICK * interval_s
        self._judge: Judge[Key] = Judge(interval_s)
        self._file = file
        self._on_change = on_change
        self._targets: dict[Key, Target] = {}
        self._by_ip: dict[tuple[str, bytes], Key] = {}
        self._sockets: dict[tuple[int, str], Solicitor] = {}
        self._has_news = asyncio.Event()
        self._blocked = self._remembered()

    @property
    def blocked(self) -> frozenset[str]:
        """The names of the peers that VXLAN does not get through to."""
        return self._blocked

    def set_targets(self, targets: Mapping[Key, Target]) -> None:
        """Ask these from now on, and no others."""
        if dict(targets) == self._targets and self._blocked <= self._targets_names():
            return
        self._targets = dict(targets)
        self._by_ip = {(one.dev, one.question.ip): key for key, one in targets.items()}
        was_blocked = [key for key in targets if key[0] in self._blocked]
        self._judge.set_paths(targets, _clock(), blocked=was_blocked)
        self._note_blocked()
        self._has_news.set()

    def state(self, key: Key) -> PathState | None:
        """What is known of a path; None where it is not probed, or not known yet."""
        path = self._judge.path(key)
        if path is None or (path.is_new and not path.lost):
            return None
        name, blocked = key[0], path.phase == "blocked"
        since = path.first_lost_at if path.lost else path.since
        text = f"VXLAN to {name} is answered"
        if blocked and path.good:
            text = f"VXLAN to {name} is answered again: {path.good} of {path.needed} in a row"
        elif path.lost:
            at = time.strftime("%H:%M:%S", time.localtime(_wall(since)))
            lost = f"{path.lost} of {path.lost} probes lost"
            text = f"VXLAN to {name} not answered since {at} ({lost})"
        return PathState(blocked, text, _wall(since), path.rtt_s)

    async def run(self) -> NoReturn:
        """Ask for ever."""
        try:
            while True:
                at = self._judge.next_at
                if at is None:
                    self._has_news.clear()
                    await self._has_news.wait()
                    continue
                await asyncio.sleep(max(at - _clock(), self._tick_s))
                self._tick()
        finally:
            for sock in self._sockets.values():
                sock.close()

    def _tick(self) -> None:
        # First what has come: whatever kept us from reading it is not the peers' fault.
        for (version, dev), sock in list(self._sockets.items()):
            for answer in sock.answers():
                key = self._by_ip.get((dev, answer.ip))
                if key is not None:
                    self._judge.answered(key, answer.number, _clock(), answer.rtt_s)
            if not sock.is_current:
                self._sockets.pop((version, dev)).close()
        for key, number in self._judge.due(_clock()):
            target = self._targets[key]
            asked_with = self._socket(target.version, target.dev)
            if asked_with is not None:
                asked_with.ask(target.question, number)
        self._note_blocked()

    def _socket(self, version: int, dev: str) -> Solicitor | None:
        place = (version, dev)
        if place not in self._sockets:
            try:
                self._sockets[place] = Solicitor(version, dev)
            except OSError:
                return None  # The device will come, or the agent says why not.
        return self._sockets[place]

    def _note_blocked(self) -> None:
        blocked = frozenset(name for name, _ in self._judge.blocked)
        changed = blocked ^ self._blocked
        if not changed:
            return
        self._blocked = blocked
        for name in sorted(changed & self._targets_names()):
            self._log(name)
        self._remember()
        self._on_change(changed)

    def _remember(self) -> None:
        if not self._blocked:
            self._file.unlink(missing_ok=True)
            return
        try:
            content = msgspec.json.encode(sorted(self._blocked)) + b"\n"
            write_atomically(self._file, content, parents=True)
        except PodwireError as error:
            log.warning("blocked paths not remembered", extra=fields(error=error))

    def _targets_names(self) -> frozenset[str]:
        return frozenset(name for name, _ in self._targets)

    def _log(self, name: str) -> None:
        states = [self.state(key) for key in self._targets if key[0] == name]
        text = next((one.text for one in states if one and one.blocked), None)
        if text is not None:
            log.warning("path is blocked", extra=fields(node=name, reason=text))
        else:
            log.info("path is open", extra=fields(node=name))

    def _remembered(self) -> frozenset[str]:
        try:
            return frozenset(from_json(self._file.read_bytes(), list[str]))
        except (OSError, msgspec.DecodeError):
            return frozenset()


def _clock() -> float:
    return time.monotonic()


def _wall(at: float) -> float:
    """A time of `_clock` in seconds of the epoch."""
    return time.time() - (_clock() - at)
