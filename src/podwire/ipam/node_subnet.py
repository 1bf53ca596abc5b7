"""Which address of a node's subnet to hand out next.

What lives here: one subnet's free and held addresses in memory, and why one can't be had. What does
not: the search (`podwire.ipam.span`), the disk (`podwire.ipam.store` keeps it and loads this from
it) and the clock (`now` is passed in, in seconds since the epoch).
"""

from __future__ import annotations

from podwire.errors import IpamError
from podwire.ipam.span import REUSE_DELAY_S, Span
from podwire.model.state import IPAddress, IPNetwork


class ExhaustedError(IpamError):
    """Every address of the subnet is held."""


class RequestedAddressError(IpamError):
    """An address that was asked for cannot be had: it is outside, reserved or held."""


class ContendedError(IpamError):
    """Others were faster, or have not answered in time: it may well succeed the next time."""


class SubnetPool:
    """The addresses of one subnet, IPv4 or IPv6.

    The network address, the gateway (the first usable address) and the IPv4 broadcast address are
    never handed out.
    """

    def __init__(self, subnet: IPNetwork, *, reuse_delay_s: float = REUSE_DELAY_S) -> None:
        self.subnet = subnet
        self._base = int(subnet.network_address)
        size = subnet.num_addresses
        end = size - 1 if subnet.version == 4 else size
        self._span = Span(2, end, reuse_delay_s=reuse_delay_s)
        self._owners: dict[int, str] = {}

    @property
    def capacity(self) -> int:
        """How many addresses can be held at once without asking for particular ones."""
        return self._span.capacity

    @property
    def held(self) -> int:
        """How many addresses are held."""
        return len(self._owners)

    def next_free(self, now: float) -> IPAddress:
        """The address to hand out next. It is not taken until `hold` is called.

        Raises ExhaustedError when every address is held.
        """
        offset = self._span.next_free(now)
        if offset is None:
            raise ExhaustedError(
                f"subnet {self.subnet} has no free address: {self.held} of {self.capacity} held",
                remedy="delete pods of this node, or give the nodes larger pod subnets",
            )
        return self.subnet.network_address + offset

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
        elif offset >= self._span.end:
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
        self._span.hold(offset, advance=advance)

    def continue_after(self, ip: IPAddress) -> None:
        """Make the search continue after `ip`, as it was before a restart."""
        if ip in self.subnet:
            self._span.continue_after(int(ip) - self._base)

    def release(self, ip: IPAddress, at: float) -> None:
        """Give `ip` back at the time `at`. One that is not held only starts to cool again."""
        offset = int(ip) - self._base
        self._owners.pop(offset, None)
        self._span.release(offset, at)
