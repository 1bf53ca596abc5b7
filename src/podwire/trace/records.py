"""What agents tell of a probe, and what they are asked about it.

Values only: packets as they were seen, dropped and judged, how the probe ended for its sender, and
questions about packets. What does not live here: the messages that carry them (`wire`), and what
they mean (`evidence`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from podwire.model.state import Why
from podwire.trace.model import Packet


class Frame(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A packet as the kernel showed it. `time_ns` since the epoch, `length` on the wire, `data`
    from the link header on (`link_type` is the ARPHRD_ number; 65534 has no link header)."""

    place: int
    ifindex: int
    outgoing: bool
    time_ns: int
    length: int
    link_type: int
    data: bytes


class Drop(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel freed a probe's packet. `place` is None for a namespace that is not observed.

    `reason` is the kernel's word (`IP_RPFILTER`), `location` the function that did it, `data`
    what of the packet was there, from the network header on.
    """

    place: int | None
    ifindex: int
    interface: str
    time_ns: int
    reason: str
    location: str
    data: bytes


class NftStep(msgspec.Struct, frozen=True, kw_only=True):
    """A rule or a policy that judged a probe's packet. `kind` is `rule` or `policy`; `verdict`
    `accept`, `drop`, `continue`, `jump …`; `rule` its text, empty for a policy. `data` is the
    packet from the network header on, as far as the kernel told; `mark` its mark after that."""

    place: int
    time_ns: int
    kind: Literal["rule", "policy"]
    family: str
    table: str
    chain: str
    rule: str
    handle: int
    verdict: str
    iif: int = 0
    oif: int = 0
    mark: int = 0
    data: bytes = b""
    why: Why | None = None


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one probe ended for its sender: `replied`, `refused`, `timeout`, or `error` with the
    errno that its stack gave (EHOSTUNREACH, EMSGSIZE, …) and `text`. `given_up_s` is how long it
    waited where that was less than its time (see `GiveUp`)."""

    number: int
    outcome: Literal["replied", "refused", "timeout", "error"]
    errno: int = 0
    text: str = ""
    rtt_us: float | None = None
    given_up_s: float | None = None


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A packet that was at an interface of a place, on the way in or out of it: what next?

    `place` and `ifindex` are those of `Observing`. `ended`: it was not seen anywhere after this, so
    look for what stopped it; at a packet that has reached its target, for what keeps it from being
    answered.

    `origin`: this place sent it (its first sighting, `out`), so the answer begins with the route
    and the neighbour that led to this interface.

    `ifindex` 0 (`out`, `ended`): the place itself was to send this and it was not seen at any
    interface; `packet` starts at the IP header then.
    """

    place: int
    ifindex: int
    direction: Literal["in", "out"]
    packet: Packet
    ended: bool = False
    origin: bool = False
    mark: int = 0
