"""The encryption of the tunnel: packets in, datagrams out, and back; without I/O.

What lives here: `SecurePeers`, all that the data path knows of encryption, and the protocol's rules
of when to do what. What does not: the handshake's cryptography (`noise`), a session's (`session`),
keys on disk (`keys`), sockets, addresses and leases.

How it works. The caller tells the peers and their public keys, hands over what it wants sealed or
opened, says from or to which peer, and itself sees to that a datagram came from that peer's
address, and that the packet in it has a source of that peer's lease. Besides the results, datagrams
come out of their own accord, handshakes and keepalives: after each call `outbox` may hold some, and
at `deadline`, which each call may bring forward, `poll` wants to be called.

    sealed = peers.seal_into("node2", packets, length, segment, out)    # 0: they wait, or must not
    opened = peers.open_into("node2", datagrams, length, segment, out)
    for name, datagram in peers.take_outbox(): …

Without a session, packets wait for the handshake that the first of them starts. The rules are
those of WireGuard, with its times, but for three: the pause between tries grows from half a second;
a datagram of an unknown session makes an end that has none ask for one, so a restarted peer is
back after one round trip; and of two handshakes that crossed, both ends keep the same session.

Everything dropped is counted by its reason in `counters` (`COUNTERS` says what each means).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

import numpy as np

from podwire.errors import InputError
from podwire.model.tunnel import ENCRYPTION_DROPS
from podwire.tunnel.association import (
    KEEPALIVE_S,
    NEVER,
    REJECT_AFTER_MESSAGES,
    REJECT_AFTER_S,
    UNANSWERED_S,
    Association,
)
from podwire.tunnel.handshake import INITIATION, INITIATION_SIZE, RESPONSE, RESPONSE_SIZE
from podwire.tunnel.negotiation import Negotiation
from podwire.tunnel.noise import HandshakeRefusedError, StaticKey
from podwire.tunnel.session import (
    HEADER,
    HEADERS,
    OVERHEAD,
    TRANSPORT,
    BatchBuffer,
    Session,
)

__all__ = ["COUNTERS", "OVERHEAD", "BatchBuffer", "SecurePeers"]

#: What is counted, by name: packets, datagrams and handshakes.
COUNTERS: Mapping[str, str] = {
    "handshakes_sent": "first messages sent, each try",
    "handshakes_done": "sessions established",
    **ENCRYPTION_DROPS,
}

#: An initiator that only receives asks for the next session this long before the end.
_REFRESH_AFTER_S = REJECT_AFTER_S - UNANSWERED_S

#: Below this number of datagrams, looking at all at once costs more than it saves.
_FEW = 4


class SecurePeers:
    """This end of all encrypted connections.

    `private_key` is X25519's 32 bytes. `clock` gives monotonic seconds, `wall_clock` nanoseconds
    since 1970, `randomness` that many random bytes.
    """

    def __init__(
        self,
        private_key: bytes,
        clock: Callable[[], float] = time.monotonic,
        *,
        wall_clock: Callable[[], int] = time.time_ns,
        randomness: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._static = StaticKey(private_key)
        self._clock = clock
        self._peers: dict[str, Association] = {}
        self.counters = dict.fromkeys(COUNTERS, 0)
        #: Datagrams to send, and to whom. `take_outbox` empties it.
        self.outbox: list[tuple[str, bytes]] = []
        self._handshakes = Negotiation(
            self._static,
            self.counters,
            self.outbox,
            wall_clock=wall_clock,
            randomness=randomness,
            now=clock(),
        )

    @property
    def deadline(self) -> float:
        """When `poll` is due, by `clock`; `math.inf` for never."""
        return self._handshakes.deadline

    @property
    def public_key(self) -> bytes:
        """What the peers know this end by."""
        return self._static.public

    def set_peer(self, name: str, public_key: bytes) -> None:
        """A peer is known by this key from now on; of another one, nothing remains.

        Raises InputError for a key that cannot be a peer's.
        """
        known = self._peers.get(name)
        if known is not None and known.public == public_key:
            return
        if public_key == self._static.public:
            raise InputError(
                "is this node's own",
                field=f"public key of {name}",
                remedy="two nodes share one key file: remove it on one of them and restart there",
            )
        try:
            ss = self._static.shared(public_key)
        except HandshakeRefusedError as error:
            raise InputError(str(error), field=f"public key of {name}") from None
        self.remove_peer(name)
        leads = self._static.public > public_key
        self._peers[name] = Association(name, public_key, ss, leads=leads, now=self._clock())

    def remove_peer(self, name: str) -> None:
        """Drop a peer's sessions at once, and the packets that wait for one."""
        peer = self._peers.pop(name, None)
        if peer is not None:
            for session in peer.sessions():
                self._handshakes.erase(peer, session)
            self._handshakes.stop_asking(peer)
            self.counters["unreachable"] += len(peer.take_waiting())

    def session_age(self, name: str) -> float | None:
        """Seconds since the handshake of the session in use; None without one."""
        peer = self._peers.get(name)
        if peer is None or peer.current is None:
            return None
        return self._clock() - peer.current.born

    def take_outbox(self) -> list[tuple[str, bytes]]:
        """Datagrams to send, each with the peer that it is for."""
        taken = self.outbox.copy()
        self.outbox.clear()
        return taken

    def seal(self, name: str, packet: bytes) -> bytes | None:
        """One packet's datagram; None where it waits, or is refused and counted."""
        now = self._clock()
        peer = self._peers.get(name)
        session = self._sendable(peer, now, 1)
        if peer is None or session is None:
            self._wait(peer, [packet], now)
            return None
        datagram = session.seal(packet)
        self._sent(peer, session, now)
        return datagram

    def seal_into(
        self,
        name: str,
        source: BatchBuffer,
        length: int,
        segment: int,
        out: BatchBuffer,
        *,
        start: int = 0,
    ) -> int:
        """Seal a batch of packets; how many bytes of `out` are datagrams to send.

        `source` holds, from `start` on, `length` bytes: packets of `segment` bytes back to back, of
        which the last may be shorter. `out` gets their datagrams the same way, of `segment +
        OVERHEAD` bytes. They are of different memory. 0 where the packets wait, or are refused.
        """
        now = self._clock()
        peer = self._peers.get(name)
        session = self._sendable(peer, now, -(-length // segment))
        if peer is None or session is None:
            whole = bytes(source.view[start : start + length])
            packets = [whole[at : at + segment] for at in range(0, length, segment)]
            self._wait(peer, packets, now)
            return 0
        written = session.seal_into(source, start, length, segment, out)
        self._sent(peer, session, now)
        return written

    def open(self, name: str, datagram: bytes | memoryview) -> bytes | None:
        """The packet of one datagram from a peer's address; None where it holds none."""
        peer = self._peers.get(name)
        if peer is None:
            self.counters["no_key"] += 1
            return None
        return self._open(peer, datagram, self._clock()) or None

    def open_into(
        self, name: str, source: BatchBuffer, length: int, segment: int, out: BatchBuffer
    ) -> int:
        """Open a batch of datagrams from a peer's address; how many bytes of `out` are packets.

        `source` and `out` are laid out as in `seal_into`: datagrams of `segment` bytes, packets of
        `segment - OVERHEAD`, the last maybe shorter. What holds no packet leaves no gap.
        """
        peer = self._peers.get(name)
        count = -(-length // segment)
        if peer is None:
            self.counters["no_key"] += count
            return 0
        now = self._clock()
        if count >= _FEW:
            opened = self._open_whole(peer, source, length, segment, out, now)
            if opened is not None:
                return opened
        at = 0
        for start in range(0, length, segment):
            datagram = source.view[start : min(start + segment, length)]
            packet = self._open(peer, datagram, now)
            if packet:
                out.view[at : at + len(packet)] = packet
                at += len(packet)
        return at

    def poll(self) -> None:
        """Do what is due by time alone: repeat handshakes, keep sessions alive, erase old ones."""
        now = self._clock()
        handshakes = self._handshakes
        for peer in self._peers.values():
            for session in peer.sessions():
                if now - session.born >= REJECT_AFTER_S:
                    handshakes.erase(peer, session)
            if now >= peer.attempt_ends_at:
                self.counters["unreachable"] += len(peer.take_waiting())
                handshakes.stop_asking(peer)
            elif now >= peer.retry_at:
                handshakes.ask_again(peer, now)
            if now >= peer.unanswered_at:
                peer.unanswered_at = NEVER
                handshakes.ask(peer, now)
            if now >= peer.keepalive_at:
                self._send_keepalive(peer, now)
        handshakes.deadline = min(
            (peer.next_event() for peer in self._peers.values()), default=NEVER
        )

    # Sending.

    def _sendable(self, peer: Association | None, now: float, count: int) -> Session | None:
        session = peer.current if peer is not None else None
        if (
            session is None
            or now - session.born >= REJECT_AFTER_S
            or session.sent + count > REJECT_AFTER_MESSAGES
        ):
            return None
        return session

    def _wait(self, peer: Association | None, packets: list[bytes], now: float) -> None:
        if peer is None:
            self.counters["no_key"] += len(packets)
            return
        for packet in packets:
            self.counters["waiting_full"] += peer.wait(packet)
        self._handshakes.ask(peer, now)

    def _sent(self, peer: Association, session: Session, now: float) -> None:
        peer.keepalive_at = NEVER
        if peer.unanswered_at == NEVER:
            peer.unanswered_at = now + UNANSWERED_S
            self._handshakes.by(peer.unanswered_at)
        if peer.wants_rekey(session, now):
            self._handshakes.ask(peer, now)

    def _send_keepalive(self, peer: Association, now: float) -> None:
        peer.keepalive_at = NEVER
        session = self._sendable(peer, now, 1)
        if session is not None:
            self.outbox.append((peer.name, session.seal(b"")))
            if peer.wants_rekey(session, now):
                self._handshakes.ask(peer, now)

    def _flush(self, peer: Association, now: float) -> bool:
        """Send what waited for the session; whether there was anything."""
        session = peer.current
        packets = peer.take_waiting()
        if session is None or not packets:
            return False
        for packet in packets:
            self.outbox.append((peer.name, session.seal(packet)))
        self._sent(peer, session, now)
        return True

    # Receiving.

    def _open_whole(
        self,
        peer: Association,
        source: BatchBuffer,
        length: int,
        segment: int,
        out: BatchBuffer,
        now: float,
    ) -> int | None:
        """A batch that is all of one session and in order; None for any other."""
        if segment <= OVERHEAD or 0 < length % segment < OVERHEAD:
            return None
        count = -(-length // segment)
        headers = np.ndarray((count,), HEADERS, source.view, 0, (segment,))
        prefixes = headers["prefix"].tolist()
        session = self._handshakes.session(peer, prefixes[0], now)
        if session is None or prefixes.count(prefixes[0]) != count:
            return None
        counters = headers["counter"].tolist()
        opened = session.open_into(source, length, segment, out, counters)
        if opened is not None:
            self._received(peer, session, now, packets=opened > 0)
        return opened

    def _open(self, peer: Association, datagram: bytes | memoryview, now: float) -> bytes | None:
        size = len(datagram)
        if size >= OVERHEAD:
            prefix, counter = HEADER.unpack_from(datagram)
            session = self._handshakes.session(peer, prefix, now)
            if session is not None:
                packet = session.open(datagram, counter)
                if packet is not None:
                    self._received(peer, session, now, packets=bool(packet))
                return packet
        kind = int.from_bytes(datagram[:4], "little")
        if kind == TRANSPORT and size >= OVERHEAD:
            self.counters["no_session"] += 1
            if peer.current is None:
                # The peer has a session that this end lost when it was restarted.
                self._handshakes.ask(peer, now)
        elif kind == INITIATION and size == INITIATION_SIZE:
            self._handshakes.answer(peer, bytes(datagram), now)
        elif kind == RESPONSE and size == RESPONSE_SIZE:
            if self._handshakes.finish(peer, bytes(datagram), now) and not self._flush(peer, now):
                # The peer may use the session only once it has seen this end use it.
                self._send_keepalive(peer, now)
        elif size and datagram[0] >> 4 in (4, 6):
            self.counters["not_encrypted"] += 1
        else:
            self.counters["malformed"] += 1
        return None

    def _received(self, peer: Association, session: Session, now: float, *, packets: bool) -> None:
        peer.unanswered_at = NEVER
        if packets and peer.keepalive_at == NEVER:
            peer.keepalive_at = now + KEEPALIVE_S
            self._handshakes.by(peer.keepalive_at)
        if session is peer.upcoming:
            if self._handshakes.confirm(peer, session):
                self._flush(peer, now)
        elif (
            session is peer.current and session.initiator and now - session.born >= _REFRESH_AFTER_S
        ):
            self._handshakes.ask(peer, now)
