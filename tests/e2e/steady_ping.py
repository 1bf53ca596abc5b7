"""A ping every 10 ms that goes on while something else happens."""

from __future__ import annotations

import re
import tempfile

from podwire.lab import LabNode, LabPod

from .waiting import until

INTERVAL_S = 0.01
#: Pings the argument until standard input ends.
_PING = f'ping -n -i {INTERVAL_S} "$1" & read _; kill -INT $!; wait $!'
_REPLY = re.compile(r"icmp_seq=(\d+) ttl=")


class SteadyPing:
    """Pings from `source` to `target` while the block lasts; then `lost` says which got no reply.

    The last ones are left out of the account: they were still under way.
    """

    def __init__(self, source: LabPod | LabNode, target: LabPod | LabNode | str) -> None:
        self._source = source
        self._target = target if isinstance(target, str) else target.ip

    def __enter__(self) -> SteadyPing:
        self._output = tempfile.TemporaryFile("w+")
        self._process = self._source.popen(
            ["sh", "-c", _PING, "sh", self._target], stdin=-1, stdout=self._output
        )
        until(lambda: len(self.answered) > 3, "pings are answered")
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate("\n", timeout=60)
        self._final = self.answered
        self._output.close()

    @property
    def answered(self) -> list[int]:
        """Sequence numbers of the replies up to now, in their order."""
        if self._output.closed:
            return self._final
        self._output.seek(0)
        return [int(number) for number in _REPLY.findall(self._output.read())]

    @property
    def lost(self) -> list[int]:
        """Sequence numbers up to the last reply that none came for."""
        answered = set(self.answered)
        return [number for number in range(1, max(answered) + 1) if number not in answered]
