"""A TCP stream that goes on while something else happens."""

from __future__ import annotations

import re
import tempfile

from podwire.lab import LabPod

from .waiting import until


class Stream:
    """A TCP stream of iperf3 from `source` to a server in `target` while the block lasts."""

    def __init__(self, source: LabPod, target: LabPod) -> None:
        self._source, self._target = source, target

    def __enter__(self) -> Stream:
        self._server = self._target.popen(["iperf3", "-s", "--forceflush"])
        assert self._server.stdout is not None
        while "Server listening" not in self._server.stdout.readline():
            assert self._server.poll() is None
        self._output = tempfile.TemporaryFile("w+")
        # Not all that fits: the machine has other tests to do.
        options = ["-t", "600", "-i", "0.2", "-b", "50M", "-f", "k", "--forceflush"]
        self._client = self._source.popen(
            ["iperf3", "-c", self._target.ip, *options], stdout=self._output
        )
        until(lambda: self.intervals > 0, "data flows")
        return self

    def __exit__(self, *error: object) -> None:
        for process in (self._client, self._server):
            process.kill()
            process.wait(60)
        self._output.close()

    @property
    def intervals(self) -> int:
        """In how many intervals up to now data got through."""
        assert self._client.poll() is None
        self._output.seek(0)
        found = re.findall(r"sec +[\d.]+ [KM]Bytes +([\d.]+) Kbits/sec", self._output.read())
        return sum(float(rate) > 0 for rate in found)
