"""A Trace's packets as a capture file, for Wireshark and tshark.

What lives here: the frames that the trace was made of, in the order of their times, each with its
comment. What does not: names and comments (`podwire.trace.capture_file`), the format
(`podwire.trace.pcapng`).
"""

from __future__ import annotations

from podwire.trace.capture_file import CaptureFile, names
from podwire.trace.evidence import Evidence
from podwire.trace.model import Trace
from podwire.trace.sightings import tunnel_ports


def render_pcapng(trace: Trace, evidence: Evidence) -> bytes:
    """The capture. A packet that is a hop says so (`hop 5`); the verdict is the file's comment."""
    called = names(evidence.facts.nodes, evidence.facts.pods, evidence.places)
    hops = {
        (trace.places[hop.place].name, hop.interface, hop.time_ns): hop.number
        for one in trace.rounds
        for path in (one.request, one.reply)
        if path is not None
        for hop in path.hops
    }
    file = CaptureFile(called, ports=tunnel_ports(evidence))
    parts = [file.head(comment=trace.verdict)]
    frames = sorted(evidence.frames, key=lambda frame: frame.time_ns)
    for frame in frames:
        place = evidence.places[frame.place]
        name = next((one.name for one in place.interfaces if one.index == frame.ifindex), "")
        number = hops.get((place.name, name, frame.time_ns))
        comments = (f"hop {number}",) if number is not None else ()
        parts.append(file.packet(place, frame, comments=comments))
    parts.append(file.tail(frames[-1].time_ns if frames else 0))
    return b"".join(parts)
