"""The handshakes of this end of the tunnel: asking, answering, repeating, and what they lead to.

What lives here: which handshake message follows from what, the indexes that sessions and messages
are named by, and the bounds on what forged ones cost. What does not: the messages' layout
(`handshake`), their cryptography (`noise`), packets and their timers (`secure`).

Both ends may ask at the same time. Each then answers the other, and both sessions come about; the
one asked for by the end with the greater public key stays in use, at both.
"""

from __future__ import annotations

from collections.abc import Callable

from podwire.tunnel import handshake
from podwire.tunnel.association import (
    ATTEMPT_S,
    FIRST_RETRY_S,
    LAST_RETRY_S,
    NEVER,
    REJECT_AFTER_S,
    Association,
)
from podwire.tunnel.budget import Budget
from podwire.tunnel.handshake import PROLOGUE
from podwire.tunnel.noise import HandshakeRefusedError, Initiator, Responder, StaticKey
from podwire.tunnel.session import Session, prefix_of

#: Handshake messages that this end takes in all, a second and at once: about a fifth of a core.
HANDSHAKES_PER_S = 1000.0
HANDSHAKES_BURST = 1000.0


class Negotiation:
    """Handshakes with all peers, and the sessions that came of them.

    `counters` and `outbox` are shared with the caller; what is sent is put there. `deadline` is
    the earliest time at which one of the timers set here or by the caller (`by`) runs out.
    """

    def __init__(
        self,
        static: StaticKey,
        counters: dict[str, int],
        outbox: list[tuple[str, bytes]],
        *,
        wall_clock: Callable[[], int],
        randomness: Callable[[int], bytes],
        now: float,
    ) -> None:
        self.deadline = NEVER
        self._static = static
        self._mac_key = handshake.mac_key(static.public)
        self._counters = counters
        self._outbox = outbox
        self._wall_clock = wall_clock
        self._randomness = randomness
        self._budget = Budget(HANDSHAKES_PER_S, HANDSHAKES_BURST, now)
        self._last_stamp = 0
        # By what their datagrams begin with.
        self._sessions: dict[int, tuple[Association, Session]] = {}
        self._asked: dict[int, Association] = {}

    def by(self, when: float) -> None:
        """Something is to be done at this time."""
        if when < self.deadline:
            self.deadline = when

    def session(self, peer: Association, prefix: int, now: float) -> Session | None:
        """The living session with this peer that a datagram's first 8 bytes name."""
        owner, session = self._sessions.get(prefix, (None, None))
        if owner is not peer or session is None or now - session.born >= REJECT_AFTER_S:
            return None
        return session

    def ask(self, peer: Association, now: float) -> None:
        """Start a handshake, unless one is under way."""
        if not peer.asking:
            peer.attempt_ends_at = now + ATTEMPT_S
            peer.retries = 0
            self.ask_again(peer, now)

    def ask_again(self, peer: Association, now: float) -> None:
        """Send a first message, instead of any that was not answered, and set when to repeat it."""
        self._asked.pop(peer.initiation_index, None)
        index = self._new_index()
        # Later than any before, also where the wall clock stands still or was set back.
        self._last_stamp = max(self._last_stamp + 1, self._wall_clock())
        initiator = Initiator(self._static, peer.public, peer.ss, PROLOGUE)
        first = initiator.first(handshake.timestamp(self._last_stamp))
        peer.initiation, peer.initiation_index = initiator, index
        self._asked[index] = peer
        self._outbox.append((peer.name, handshake.initiation(peer.mac_key, index, first)))
        self._counters["handshakes_sent"] += 1
        pause = min(LAST_RETRY_S, FIRST_RETRY_S * 2**peer.retries)
        # Up to a third longer, so that two ends do not ask in step.
        peer.retry_at = now + pause * (1 + self._randomness(1)[0] / 768)
        peer.retries += 1
        self.by(peer.retry_at)

    def stop_asking(self, peer: Association) -> None:
        """Forget the handshake under way, if there is one."""
        self._asked.pop(peer.initiation_index, None)
        peer.initiation = None
        peer.retry_at = peer.attempt_ends_at = NEVER

    def answer(self, peer: Association, datagram: bytes, now: float) -> None:
        """A first message came; answer it where it is the peer's and new."""
        if not self._admitted(peer, datagram, now):
            return
        sender, first = handshake.parse_initiation(datagram)
        responder = Responder(self._static, PROLOGUE)
        try:
            if responder.identity(first) != peer.public:
                raise HandshakeRefusedError("another key than this peer's")
            stamp = responder.payload(peer.ss)
            if stamp <= peer.newest_timestamp:
                self._counters["handshake_stale"] += 1
                return
            second, send, receive = responder.second(b"")
        except HandshakeRefusedError:
            self._counters["handshake_forged"] += 1
            return
        peer.newest_timestamp = stamp
        if peer.upcoming is not None:
            self.erase(peer, peer.upcoming)
        session = Session(
            local=self._new_index(),
            remote=sender,
            initiator=False,
            send=send,
            receive=receive,
            born=now,
            counters=self._counters,
        )
        self._register(peer, session)
        peer.upcoming = session
        peer.upcoming_crossed = peer.initiation is not None
        answer = handshake.response(peer.mac_key, session.local, sender, second)
        self._outbox.append((peer.name, answer))

    def finish(self, peer: Association, datagram: bytes, now: float) -> bool:
        """A second message came; whether it made a new current session."""
        sender, receiver, second = handshake.parse_response(datagram)
        if self._asked.get(receiver) is not peer or peer.initiation is None:
            self._counters["handshake_stale"] += 1
            return False
        if not self._admitted(peer, datagram, now):
            return False
        try:
            _, send, receive = peer.initiation.finish(second)
        except HandshakeRefusedError:
            self._counters["handshake_forged"] += 1
            return False
        session = Session(
            local=receiver,
            remote=sender,
            initiator=True,
            send=send,
            receive=receive,
            born=now,
            counters=self._counters,
        )
        self._register(peer, session)
        self._establish(peer, session)
        return True

    def confirm(self, peer: Association, session: Session) -> bool:
        """The peer uses the session that it asked for; whether that is the current one now."""
        peer.upcoming = None
        ours = peer.current
        if (
            peer.upcoming_crossed
            and peer.leads
            and ours is not None
            and ours.initiator
            and ours.born >= session.born
        ):
            # The peer does the opposite, so both send with the session that this end asked for.
            self._retire(peer, session)
            return False
        self._establish(peer, session)
        return True

    def erase(self, peer: Association, session: Session) -> None:
        """Drop a session and its keys."""
        self._sessions.pop(session.prefix, None)
        peer.drop(session)

    def _establish(self, peer: Association, session: Session) -> None:
        self.stop_asking(peer)
        if peer.current is not None:
            self._retire(peer, peer.current)
        peer.current = session
        self._counters["handshakes_done"] += 1

    def _retire(self, peer: Association, session: Session) -> None:
        """From now on, a session only receives."""
        if peer.previous is not None:
            self.erase(peer, peer.previous)
        peer.previous = session

    def _register(self, peer: Association, session: Session) -> None:
        self._sessions[session.prefix] = (peer, session)
        self.by(session.born + REJECT_AFTER_S)

    def _admitted(self, peer: Association, datagram: bytes, now: float) -> bool:
        """Whether a handshake message is worth the X25519 that it costs."""
        if not handshake.has_mac(self._mac_key, datagram):
            self._counters["handshake_forged"] += 1
            return False
        if not (peer.budget.take(now) and self._budget.take(now)):
            self._counters["handshake_limited"] += 1
            return False
        return True

    def _new_index(self) -> int:
        while True:
            index = int.from_bytes(self._randomness(4), "little")
            if prefix_of(index) not in self._sessions and index not in self._asked:
                return index
