"""Who has which addresses: peers by their leases and by where their datagrams come from.

What lives here: the longest-prefix match for both directions, with a memory of what was asked
before, and the state that is kept for each peer. What does not: sockets and packets. Addresses are
packed bytes here, 4 or 16 of them, as they stand in the packets.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from podwire.errors import InputError
from podwire.model.state import IPNetwork
from podwire.model.tunnel import TunnelPeer

#: An address as text, as the C library writes it, and a port.
Place = tuple[str, int]
#: Answers that are remembered; beyond it all are forgotten at once. Whoever makes the tunnel
#: forget by asking for many addresses only makes it search again.
_REMEMBERED = 1 << 16


class Line:
    """A socket that is connected to one place. How long the datagrams are of a batch that
    `receive_into` gives is not told."""

    __slots__ = ("bulk", "fd", "peer", "place", "receive_into", "received", "send", "socket")

    def __init__(self, sock: socket.socket, place: Place) -> None:
        self.socket, self.place = sock, place
        self.fd = sock.fileno()
        self.send, self.receive_into = sock.send, sock.recv_into
        #: Whether many packets came at once of late.
        self.bulk = False
        #: Who is at that place.
        self.peer: Peer | None = None
        #: For `lines.Lines`: packets that came from there when it was last looked.
        self.received = 0


class Peer:
    """A peer and what passed. Only the data path counts; the table only looks up."""

    __slots__ = (
        "beside",
        "encrypted",
        "heard",
        "line",
        "name",
        "owned",
        "place",
        "received_bytes",
        "received_packets",
        "sent_bytes",
        "sent_packets",
        "subnets",
        "value",
        "version",
    )

    def __init__(self, value: TunnelPeer) -> None:
        """Raises InputError."""
        self.value = value
        self.name = value.name
        field = f"peer {value.name}"
        self.subnets = parse_networks(value.subnets, f"{field}: subnets")
        address = parse_address(value.address, f"{field}: address")
        #: Of the underlay.
        self.version = address.version
        #: Where its datagrams come from and go to.
        self.place: Place = (_canonical(address), value.port)
        #: The sources that were found to be inside of its lease.
        self.owned: dict[bytes, bool] = {}
        #: Whether it is spoken to encrypted, and only so.
        self.encrypted = False
        #: Another one at the same place: a node's lease of before, which has not expired yet.
        self.beside: Peer | None = None
        #: The socket that is connected to its place, where there is one.
        self.line: Line | None = None
        self.sent_packets = self.sent_bytes = self.received_packets = self.received_bytes = 0
        #: By time.monotonic(), of the last datagram accepted from it.
        self.heard: float | None = None

    def owns(self, address: bytes) -> bool:
        """Whether an address is inside of its lease, or of one that another has at its place.

        Where datagrams are encrypted, they tell by themselves which of them sent it.
        """
        known = self.owned.get(address)
        if known is None:
            if len(self.owned) >= _REMEMBERED:
                self.owned.clear()
            known = _contains(self.subnets, address)
            if not known and self.beside is not None and not self.encrypted:
                known = not self.beside.encrypted and self.beside.owns(address)
            self.owned[address] = known
        return known

    def adopt(self, other: Peer) -> None:
        """Go on counting where the same peer's older value left off."""
        self.sent_packets, self.sent_bytes = other.sent_packets, other.sent_bytes
        self.received_packets, self.received_bytes = other.received_packets, other.received_bytes
        self.heard = other.heard


class Table:
    """All peers, and this node's own subnets. Where two peers claim the same, the newer has it."""

    def __init__(self) -> None:
        self._own: tuple[IPNetwork, ...] = ()
        #: What was asked before, and its answers.
        self.local: dict[bytes, bool] = {}
        self.routes: dict[bytes, Peer | None] = {}
        #: By length of the prefix, longest first, for each length of an address.
        self._prefixes: dict[int, dict[int, dict[int, Peer]]] = {4: {}, 16: {}}
        self._peers: dict[str, Peer] = {}
        #: Peers by their places.
        self.by_source: dict[Place, Peer] = {}

    @property
    def peers(self) -> dict[str, Peer]:
        return self._peers

    def set_own(self, subnets: Iterable[IPNetwork]) -> None:
        """These are this node's own subnets."""
        self._own = tuple(subnets)
        self.local.clear()

    def route(self, target: bytes) -> Peer | None:
        """The peer whose lease has the longest prefix of an address."""
        try:
            return self.routes[target]
        except KeyError:
            if len(self.routes) >= _REMEMBERED:
                self.routes.clear()
            found = self.routes[target] = self._search(target)
            return found

    def is_local(self, address: bytes) -> bool:
        """Whether an address is inside of this node's own subnets."""
        known = self.local.get(address)
        if known is None:
            if len(self.local) >= _REMEMBERED:
                self.local.clear()
            known = self.local[address] = _contains(self._own, address)
        return known

    def set_peer(self, peer: Peer) -> None:
        """Add a peer, or put a new value in the place of the one of its name."""
        old = self._peers.pop(peer.name, None)
        self._peers[peer.name] = peer
        if old is None:
            self._insert(peer)
            self.routes.clear()
        else:
            peer.adopt(old)
            self._rebuild()

    def remove_peer(self, name: str) -> None:
        """Forget a peer, if it is known."""
        if self._peers.pop(name, None) is not None:
            self._rebuild()

    def replace(self, peers: Iterable[Peer]) -> None:
        """These are all peers."""
        old, self._peers = self._peers, {}
        for peer in peers:
            if peer.name in old:
                peer.adopt(old[peer.name])
            self._peers[peer.name] = peer
        self._rebuild()

    def _rebuild(self) -> None:
        self.routes.clear()
        self.by_source = {}
        self._prefixes = {4: {}, 16: {}}
        for peer in self._peers.values():
            if peer.beside is not None:
                peer.beside = None
                peer.owned.clear()
            self._insert(peer)

    def _insert(self, peer: Peer) -> None:
        peer.beside = self.by_source.get(peer.place)
        self.by_source[peer.place] = peer
        for net in peer.subnets:
            lengths = self._prefixes[net.max_prefixlen >> 3]
            if net.prefixlen not in lengths:
                lengths[net.prefixlen] = {}
                ordered = dict(sorted(lengths.items(), reverse=True))
                self._prefixes[net.max_prefixlen >> 3] = lengths = ordered
            number = int(net.network_address) >> net.max_prefixlen - net.prefixlen
            lengths[net.prefixlen][number] = peer

    def _search(self, target: bytes) -> Peer | None:
        number, bits = int.from_bytes(target, "big"), len(target) << 3
        for length, peers in self._prefixes[len(target)].items():
            if peer := peers.get(number >> bits - length):
                return peer
        return None


def parse_address(text: str, field: str) -> IPv4Address | IPv6Address:
    """Raises InputError."""
    try:
        return ip_address(text)
    except ValueError:
        raise InputError(f"{text!r} is not an IP address", field=field) from None


def parse_networks(texts: Iterable[str], field: str) -> tuple[IPNetwork, ...]:
    """Raises InputError."""
    try:
        return tuple(ip_network(text) for text in texts)
    except ValueError as error:
        raise InputError(f"{error}", field=field) from None


def _canonical(address: IPv4Address | IPv6Address) -> str:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return socket.inet_ntop(family, address.packed)


def _contains(networks: Iterable[IPNetwork], address: bytes) -> bool:
    parsed = IPv4Address(address) if len(address) == 4 else IPv6Address(address)
    return any(parsed in net for net in networks)
