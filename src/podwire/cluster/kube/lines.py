"""Splitting a byte stream into lines, without I/O.

A watch is one JSON document a line; the network cuts it anywhere, and one line may be larger
than any buffer. `LineSplitter` takes the chunks as they come and gives back whole lines. Each
byte is scanned once and a line in many chunks is joined once, so a 1 MB object is no worse than
a thousand small ones. A line that never ends is never given: the watch resumes before it.
"""

from __future__ import annotations


class LineSplitter:
    """Holds the unfinished line between chunks."""

    def __init__(self) -> None:
        self._partial: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes, without their ends (LF or CRLF) and blank ones."""
        head, newline, rest = chunk.partition(b"\n")
        if not newline:
            if chunk:
                self._partial.append(chunk)
            return []
        lines = [b"".join((*self._partial, head)), *rest.split(b"\n")]
        tail = lines.pop()
        self._partial = [tail] if tail else []
        return [stripped for line in lines if (stripped := line.rstrip(b"\r"))]
