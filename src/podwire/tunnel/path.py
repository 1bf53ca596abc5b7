"""What both directions of the data path share: the way to a peer, counters, ICMP errors.

What lives here: `Path`, which knows the device, the sockets and the peers, sends packets to a peer
bare or sealed, and knows what to do about a packet that goes no further. What does not: how packets
come in (`outbound`, `inbound`), and when (`loop`).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable

from podwire.kernel.tun import Tun
from podwire.model.tunnel import BATCH_BYTES
from podwire.tunnel.budget import Budget
from podwire.tunnel.headers import may_fragment
from podwire.tunnel.icmp import Problem, error_about
from podwire.tunnel.secure import OVERHEAD, BatchBuffer, SecurePeers
from podwire.tunnel.sockets import MAX_SEGMENTS, IcmpSocket, Underlay
from podwire.tunnel.table import Peer, Table

#: ICMP errors a second, and at once: Linux's own limits for all it sends (icmp_msgs_per_sec).
_ERRORS_PER_S, _ERRORS_BURST = 1000.0, 50.0
#: Every IPv6 path takes packets of this size (RFC 8200), so nobody may be told of less.
_IPV6_MIN_MTU = 1280


class Path:
    """The ways between the TUN device and the peers."""

    def __init__(
        self,
        tun: Tun,
        underlays: Iterable[Underlay],
        icmp: IcmpSocket,
        table: Table,
        secure: SecurePeers | None,
        drops: dict[str, int],
        *,
        require_encryption: bool,
    ) -> None:
        self.tun, self.table, self.secure = tun, table, secure
        self.underlays = {one.version: one for one in underlays}
        self.require_encryption = require_encryption
        #: By the names of `podwire.model.tunnel.DROPS`.
        self.drops = drops
        self._icmp = icmp
        self._budget = Budget(_ERRORS_PER_S, _ERRORS_BURST, time.monotonic())
        self._sealed = BatchBuffer(memoryview(bytearray(2 * BATCH_BYTES)))

    def answer(self, packet: bytes | memoryview, problem: Problem, mtu: int = 0) -> None:
        """Tell a packet's source, unless that must not be, or there were too many of late."""
        message = error_about(packet, problem, mtu)
        if message is not None and self._budget.take(time.monotonic()):
            source = packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]
            self._icmp.send(bytes(source), message)

    def inner_mtu(self, peer: Peer) -> int | None:
        """The largest IP packet that the path to a peer takes inside of one unfragmented datagram;
        None where there is no path."""
        underlay = self.underlays.get(peer.version)
        if underlay is None:
            return None
        try:
            mtu = underlay.path_mtu(peer)
        except OSError:
            return None
        return mtu - OVERHEAD if peer.encrypted else mtu

    # Sending to a peer. What is sent counts as sent also where it waits for a handshake.

    def send_one(self, peer: Peer, packet: memoryview) -> None:
        """Send one packet."""
        size = len(packet)
        peer.sent_packets += 1
        peer.sent_bytes += size
        underlay = self.underlays.get(peer.version)
        if underlay is None:
            self.drops["send_failed"] += 1
            return
        if peer.encrypted:
            error = self._send_sealed(underlay, peer, BatchBuffer(packet), 0, size, size)
        else:
            error = underlay.send(peer, packet)
        if error:
            self._refused(error, underlay, peer, [bytes(packet)])

    def send_packed(self, peer: Peer, packets: BatchBuffer, size: int, segment: int) -> None:
        """Send packets that lie back to back, of `segment` bytes each but the last."""
        underlay = self.underlays.get(peer.version)
        count = -(-size // segment)
        if underlay is None:
            self.drops["send_failed"] += count
            return
        peer.sent_packets += count
        peer.sent_bytes += size
        each = segment + OVERHEAD if peer.encrypted else segment
        most = min(MAX_SEGMENTS, BATCH_BYTES // each) if underlay.gso else 1
        for start in range(0, size, most * segment):
            part = min(most * segment, size - start)
            if peer.encrypted:
                error = self._send_sealed(underlay, peer, packets, start, part, segment)
            else:
                error = underlay.send_batch(peer, packets.view[start : start + part], segment)
            if error:
                here = packets.view[start : start + part]
                parts = [bytes(here[at : at + segment]) for at in range(0, part, segment)]
                self._refused(error, underlay, peer, parts)

    def _send_sealed(
        self,
        underlay: Underlay,
        peer: Peer,
        packets: BatchBuffer,
        start: int,
        size: int,
        segment: int,
    ) -> int:
        assert self.secure is not None  # noqa: S101  no peer is encrypted without
        sealed = self.secure.seal_into(peer.name, packets, size, segment, self._sealed, start=start)
        error = 0
        if sealed:
            error = underlay.send_batch(peer, self._sealed.view[:sealed], segment + OVERHEAD)
        if self.secure.outbox:
            self.flush_outbox()
        return error

    def flush_outbox(self) -> None:
        """Send what the encryption has to say itself."""
        if self.secure is None or not self.secure.outbox:
            return
        for name, datagram in self.secure.take_outbox():
            peer = self.table.peers.get(name)
            underlay = self.underlays.get(peer.version) if peer else None
            if peer and underlay:
                underlay.send(peer, memoryview(datagram))

    def _refused(self, error: int, underlay: Underlay, peer: Peer, packets: list[bytes]) -> None:
        """The kernel did not send these packets."""
        if error == errno.EMSGSIZE:
            self._too_big(underlay, peer, packets)
        elif error in (errno.EAGAIN, errno.ENOBUFS):
            self.drops["send_overrun"] += len(packets)
        elif error in (errno.EIO, errno.EINVAL) and len(packets) > 1 and underlay.gso:
            # A device that can't fill in checksums takes no batches.
            underlay.gso = False
            for packet in packets:
                self._send_again(underlay, peer, packet, fragment=False)
        else:
            self.drops["send_failed"] += len(packets)

    def _too_big(self, underlay: Underlay, peer: Peer, packets: list[bytes]) -> None:
        mtu = self.inner_mtu(peer)
        if mtu is None:
            self.drops["send_failed"] += len(packets)
            return
        for packet in packets:
            if len(packet) <= mtu:
                self._send_again(underlay, peer, packet, fragment=False)
            elif may_fragment(packet, 0) or (packet[0] >> 4 == 6 and mtu < _IPV6_MIN_MTU):
                self._send_again(underlay, peer, packet, fragment=True)
            else:
                self.drops["too_big"] += 1
                self.answer(packet, Problem.TOO_BIG, mtu)

    def _send_again(self, underlay: Underlay, peer: Peer, packet: bytes, *, fragment: bool) -> None:
        datagram = memoryview(packet)
        if peer.encrypted and self.secure is not None:
            size = len(packet)
            size = self.secure.seal_into(peer.name, BatchBuffer(datagram), size, size, self._sealed)
            datagram = self._sealed.view[:size]
        send = underlay.send_fragmented if fragment else underlay.send
        if datagram and send(peer, datagram):
            self.drops["send_failed"] += 1
