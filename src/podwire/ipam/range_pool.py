"""The addresses of one node's ranges of one network: which are held, and which is next.

What lives here: one network in memory. What does not: the disk, and where ranges come from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from podwire.ipam import ranges
from podwire.ipam.ranges import Range
from podwire.ipam.span import REUSE_DELAY_S, Span
from podwire.model.state import IPAddress, IPNetwork
from podwire.plan.wiring.bridge import gateway


class RangePool:
    """Addresses by number; a range comes and goes, what is held stays held."""

    def __init__(self, network: IPNetwork, *, reuse_delay_s: float = REUSE_DELAY_S) -> None:
        self.network = network
        self._reuse_delay_s = reuse_delay_s
        self._owners: dict[int, str] = {}
        self._released: dict[int, float] = {}
        self._spans: dict[tuple[int, int], Span] = {}
        self._gateway: int | None = None
        #: The address that was handed out last.
        self.last: IPAddress | None = None

    @property
    def in_use(self) -> set[int]:
        """What is not to be given away."""
        own = {self._gateway} if self._gateway is not None else set()
        return own | self._owners.keys() | self._released.keys()

    def use(self, own: Sequence[Range]) -> None:
        """These are the node's ranges from now on, the first one with its own address."""
        self._gateway = int(gateway(own[0].cidrs[0]))
        self._spans = {
            (one.first, one.end): self._spans.get((one.first, one.end)) or self._span(one)
            for one in own
        }
        self._hold(self._gateway)

    def next_free(self, now: float) -> IPAddress | None:
        """The address to hand out next, None where all are held. It is not taken until `hold`."""
        for cooling in (False, True):
            for (base, _), span in self._spans.items():
                number = span.next_free(now, cooling=cooling)
                if number is not None:
                    return type(self.network.network_address)(base + number)
        return None

    def has(self, ip: IPAddress) -> bool:
        """Whether an address is one of these ranges'."""
        return any(first <= int(ip) < end for first, end in self._spans)

    def holder(self, ip: IPAddress) -> str | None:
        """Who has it, None where it is free."""
        number = int(ip)
        if number == self._gateway:
            return "the node itself: it is its pods' gateway"
        edges = {int(self.network.network_address)}
        if self.network.version == 4:
            edges.add(int(self.network.broadcast_address))
        return (
            "nobody ever: it is the network's own" if number in edges else self._owners.get(number)
        )

    def hold(self, ip: IPAddress, owner: str, *, advance: bool = False) -> None:
        """Take it; `advance` makes it the one that the search continues after."""
        self._owners[int(ip)] = owner
        self._released.pop(int(ip), None)
        self._hold(int(ip), advance=advance)

    def release(self, ip: IPAddress, at: float) -> None:
        """Give it back at the time `at`."""
        self._owners.pop(int(ip), None)
        for number in [
            one for one, when in self._released.items() if when + self._reuse_delay_s < at
        ]:
            del self._released[number]
        self._released[int(ip)] = at
        for (first, end), span in self._spans.items():
            if first <= int(ip) < end:
                span.release(int(ip) - first, at)

    def keep(self, known: Collection[IPAddress], now: float) -> None:
        """Give back all that pods hold but these."""
        numbers = {int(ip) for ip in known if ip.version == self.network.version}
        for number in self._owners.keys() - numbers:
            self.release(type(self.network.network_address)(number), now)

    def drop(self, ip: IPAddress) -> None:
        """Give back what nobody has used."""
        self.release(ip, 0.0)
        self._released.pop(int(ip), None)

    def _hold(self, number: int, *, advance: bool = False) -> None:
        for (first, end), span in self._spans.items():
            if first <= number < end:
                span.hold(number - first, advance=advance)

    def _span(self, one: Range) -> Span:
        first, end = ranges.usable(one)
        span = Span(first - one.first, end - one.first, reuse_delay_s=self._reuse_delay_s)
        for number in self._owners:
            if one.first <= number < one.end:
                span.hold(number - one.first)
        for number, at in self._released.items():
            if one.first <= number < one.end:
                span.release(number - one.first, at)
        if self.last is not None and one.has(self.last):
            span.continue_after(int(self.last) - one.first)
        return span
