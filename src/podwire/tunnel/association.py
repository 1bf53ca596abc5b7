"""What this end of the tunnel holds about one peer: its key, sessions, timers, waiting packets.

What lives here: the values and the questions that can be answered from them alone. What moves them
is `podwire.tunnel.secure`. Times are monotonic seconds; `NEVER` is a timer that doesn't run.

Up to three sessions are alive at once. `current` is sent with. `previous` is what it followed, kept
for datagrams that were on their way. `upcoming` is one that the peer asked for and has not yet
used: until then nothing shows that it has the answer, so nothing may be sent with it.
"""

from __future__ import annotations

import math
from collections import deque

from podwire.tunnel.budget import Budget
from podwire.tunnel.handshake import mac_key
from podwire.tunnel.noise import Initiator
from podwire.tunnel.session import Session

NEVER = math.inf

#: A session's age at which its initiator asks for the next one, and at which it is erased.
REKEY_AFTER_S = 120.0
REJECT_AFTER_S = 180.0
#: The same by messages sent. AES-GCM's bound is far below that of ChaCha20-Poly1305: RFC 9001, B.1
#: allows 2**28 packets of 2 KiB a key, which is 2**26 of a jumbo frame.
REKEY_AFTER_MESSAGES = 1 << 25
REJECT_AFTER_MESSAGES = 1 << 26
#: How long after a packet received an end that sends nothing says that it is there.
KEEPALIVE_S = 10.0
#: Sending for so long without an answer means that the peer has lost the session.
UNANSWERED_S = 15.0
#: The first and longest pause before a handshake is tried again, and when to give up.
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 5.0
ATTEMPT_S = 90.0
#: Packets that wait for a session; the oldest makes room.
WAITING_PACKETS = 256
WAITING_BYTES = 256 * 1024
#: Handshake messages that one peer may cost this end, a second and at once.
PEER_HANDSHAKES_PER_S = 5.0
PEER_HANDSHAKES_BURST = 10.0


class Association:
    """One peer. `leads` says whose session stays when both ends ask for one at the same time."""

    __slots__ = (
        "attempt_ends_at",
        "budget",
        "current",
        "initiation",
        "initiation_index",
        "keepalive_at",
        "leads",
        "mac_key",
        "name",
        "newest_timestamp",
        "previous",
        "public",
        "retries",
        "retry_at",
        "ss",
        "unanswered_at",
        "upcoming",
        "upcoming_crossed",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self, name: str, public: bytes, ss: bytes, *, leads: bool, now: float) -> None:
        self.name = name
        self.public = public
        self.ss = ss
        self.leads = leads
        self.mac_key = mac_key(public)
        self.budget = Budget(PEER_HANDSHAKES_PER_S, PEER_HANDSHAKES_BURST, now)
        self.newest_timestamp = b""
        self.current: Session | None = None
        self.previous: Session | None = None
        self.upcoming: Session | None = None
        # Whether `upcoming` was asked for while this end had asked too.
        self.upcoming_crossed = False
        self.initiation: Initiator | None = None
        self.initiation_index = 0
        self.retries = 0
        self.retry_at = NEVER
        self.attempt_ends_at = NEVER
        self.unanswered_at = NEVER
        self.keepalive_at = NEVER
        self.waiting: deque[bytes] = deque()
        self.waiting_bytes = 0

    @property
    def asking(self) -> bool:
        """Whether this end is at trying for a handshake."""
        return self.retry_at != NEVER

    def sessions(self) -> list[Session]:
        """All that are alive."""
        slots = (self.current, self.previous, self.upcoming)
        return [session for session in slots if session is not None]

    def drop(self, session: Session) -> None:
        """Erase a session: with its last reference here, its keys go."""
        if session is self.current:
            self.current = None
        elif session is self.previous:
            self.previous = None
        elif session is self.upcoming:
            self.upcoming = None

    def wants_rekey(self, session: Session, now: float) -> bool:
        """Whether a session that was just sent with is due to be followed by another."""
        if session.sent >= REKEY_AFTER_MESSAGES:
            return True
        return session.initiator and now - session.born >= REKEY_AFTER_S

    def wait(self, packet: bytes) -> int:
        """Keep a packet until there is a session; how many were dropped for it."""
        dropped = 0
        self.waiting.append(packet)
        self.waiting_bytes += len(packet)
        while len(self.waiting) > WAITING_PACKETS or self.waiting_bytes > WAITING_BYTES:
            self.waiting_bytes -= len(self.waiting.popleft())
            dropped += 1
        return dropped

    def take_waiting(self) -> list[bytes]:
        """The packets that waited, which wait no more."""
        packets = list(self.waiting)
        self.waiting.clear()
        self.waiting_bytes = 0
        return packets

    def next_event(self) -> float:
        """When something is due without anything arriving."""
        times = [session.born + REJECT_AFTER_S for session in self.sessions()]
        return min(self.retry_at, self.unanswered_at, self.keepalive_at, *times, NEVER)
