"""Which address of a node's subnet to hand out next.

What lives here: one subnet's free and held addresses in memory, and the choice of the next one.
What does not: the disk (`podwire.ipam.store` keeps it and loads this from it) and the clock (`now`
is passed in, in seconds since the epoch).

How it works. Addresses are small integers, their offset in the subnet. Held ones and those released
a moment ago ("cooling") are two bitmaps, each one Python int, so "the next free address after the
last one handed out" is a shift and a lowest-zero-bit, whatever the number held: a few microseconds
for a /16. The search goes round like host-local's. A released address is passed over for the reuse
delay, because peers still hold ARP and conntrack entries for it, unless nothing else is free: then
the one that has been free for longest is taken.
"""

from __future__ import annotations

from podwire.errors import IpamError
from podwire.model.state import IPAddress, IPNetwork

#: Seconds for which a released address is not handed out again while another one is free.
REUSE_DELAY_S = 60.0

#: Only so many addresses of a larger subnet (an IPv6 /64) are handed out unasked. It bounds the
#: bitmaps; a Linux bridge takes 1,024 ports.
WINDOW = 1 << 16


class ExhaustedError(IpamError):
    """Every address of the subnet is held."""


class RequestedAddressError(IpamError):
    """An address that was asked for cannot be had: it is outside, reserved or held."""


class SubnetPool:
    """The addresses of one subnet, IPv4 or IPv6.

    The network address, the gateway (the first usable address) and the IPv4 broadcast address are
    never handed out.
    """

    def __init__(self, subnet: IPNetwork, *, reuse_delay_s: float = REUSE_DELAY_S) -> None:
        self.subnet = subnet
        self._base = int(subnet.network_address)
        self._reuse_delay_s = reuse_delay_s
        size = subnet.num_addresses
        self._first = 2
        self._end = size - 1 if subnet.version == 4 else size
        self._window_end = min(self._end, WINDOW)
        self._last = self._first - 1
        self._owners: dict[int, str] = {}
        self._cooling: dict[int, float] = {}
        self._held_bits = 0
        self._cooling_bits = 0

    @property
    def capacity(self) -> int:
        """How many addresses can be held at once without asking for particular ones."""
        return max(0, self._window_end - self._first)

    @property
    def held(self) -> int:
        """How many addresses are held."""
        return len(self._owners)

    def next_free(self, now: float) -> IPAddress:
        """The address to hand out next. It is not taken until `hold` is called.

        Raises ExhaustedError when every address is held.
        """
        self._forget_cooled(now)
        bits = self._held_bits | self._cooling_bits
        offset = self._lowest_clear(bits, self._last + 1, self._window_end)
        if offset is None:
            offset = self._lowest_clear(bits, self._first, self._window_end)
        if offset is None:
            # Insertion order is order of release, so the first has been free for longest.
            offset = next((o for o in self._cooling if o < self._window_end), None)
        if offset is None:
            raise ExhaustedError(
                f"subnet {self.subnet} has no free address: {self.held} of {self.capacity} held",
                remedy="delete pods of this node, or give the nodes larger pod subnets",
            )
        return self._address(offset)

    def check_requested(self, ip: IPAddress) -> None:
        """Raise RequestedAddressError with the reason when `ip` cannot be handed out.

        One that was released a moment ago can: who names an address wants that one.
        """
        if ip not in self.subnet:
            raise RequestedAddressError(
                f"requested address {ip} is outside of this node's subnet {self.subnet}"
            )
        offset = int(ip) - self._base
        if offset == 1:
            reason = "is the gateway"
        elif offset == 0:
            reason = "is the network address"
        elif offset >= self._end:
            reason = "is the broadcast address"
        elif (owner := self._owners.get(offset)) is not None:
            reason = f"is held by {owner}"
        else:
            return
        raise RequestedAddressError(f"requested address {ip} {reason} (subnet {self.subnet})")

    def hold(self, ip: IPAddress, owner: str, *, advance: bool = False) -> None:
        """Take `ip` for `owner` (shown when somebody else asks for it).

        `advance` makes it the one that the search continues after.
        """
        offset = int(ip) - self._base
        self._owners[offset] = owner
        if self._cooling.pop(offset, None) is not None and offset < WINDOW:
            self._cooling_bits &= ~(1 << offset)
        if offset < WINDOW:
            self._held_bits |= 1 << offset
        if advance:
            self._last = offset

    def continue_after(self, ip: IPAddress) -> None:
        """Make the search continue after `ip`, as it was before a restart."""
        if ip in self.subnet:
            self._last = int(ip) - self._base

    def release(self, ip: IPAddress, at: float) -> None:
        """Give `ip` back at the time `at`. One that is not held only starts to cool again."""
        offset = int(ip) - self._base
        self._owners.pop(offset, None)
        self._cooling.pop(offset, None)
        self._cooling[offset] = at
        if offset < WINDOW:
            self._held_bits &= ~(1 << offset)
            self._cooling_bits |= 1 << offset

    def _forget_cooled(self, now: float) -> None:
        while self._cooling:
            offset, at = next(iter(self._cooling.items()))
            # A release "in the future" is a clock that was set back: it has cooled too.
            if at <= now < at + self._reuse_delay_s:
                return
            del self._cooling[offset]
            if offset < WINDOW:
                self._cooling_bits &= ~(1 << offset)

    def _address(self, offset: int) -> IPAddress:
        return self.subnet.network_address + offset

    @staticmethod
    def _lowest_clear(bits: int, start: int, end: int) -> int | None:
        """The lowest offset in [start, end) whose bit is clear."""
        shifted = bits >> start
        offset = start + (~shifted & (shifted + 1)).bit_length() - 1
        return offset if offset < end else None
