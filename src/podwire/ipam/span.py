"""Which number of a span is free: the search that every local pool of addresses goes by.

What lives here: small integers, held or cooling, and the choice of the next one. What does not:
addresses, and who holds them.

How it works. Held numbers and those released a moment ago ("cooling") are two bitmaps, each one
Python int, so "the next free one after the last one handed out" is a shift and a lowest-zero-bit,
whatever the number held: a few microseconds for 65,536. The search goes round like host-local's. A
released number is passed over for the reuse delay, because peers still hold ARP and conntrack
entries for its address, unless nothing else is free: then the one that has been free for longest.
"""

from __future__ import annotations

#: Seconds for which a released address is not handed out again while another one is free.
REUSE_DELAY_S = 60.0

#: Only so many of a larger span (an IPv6 /64) are handed out unasked. It bounds the bitmaps; a
#: Linux bridge takes 1,024 ports.
WINDOW = 1 << 16


class Span:
    """The numbers from `first` up to `end`, exclusive."""

    def __init__(self, first: int, end: int, *, reuse_delay_s: float = REUSE_DELAY_S) -> None:
        self.first = first
        self.end = end
        self._reuse_delay_s = reuse_delay_s
        self._window_end = min(end, WINDOW)
        self._last = first - 1
        self._cooling: dict[int, float] = {}
        self._held_bits = 0
        self._cooling_bits = 0

    @property
    def capacity(self) -> int:
        """How many can be held at once without asking for particular ones."""
        return max(0, self._window_end - self.first)

    def next_free(self, now: float, *, cooling: bool = True) -> int | None:
        """The number to hand out next; None where all are held. It is not taken until `hold`.

        Without `cooling`, None also where only numbers are left that were released a moment ago.
        """
        self._forget_cooled(now)
        bits = self._held_bits | self._cooling_bits
        found = self._lowest_clear(bits, self._last + 1, self._window_end)
        if found is None:
            found = self._lowest_clear(bits, self.first, self._window_end)
        if found is None and cooling:
            # Insertion order is order of release, so the first has been free for longest.
            found = next((one for one in self._cooling if one < self._window_end), None)
        return found

    def hold(self, number: int, *, advance: bool = False) -> None:
        """Take it. `advance` makes it the one that the search continues after."""
        if self._cooling.pop(number, None) is not None and number < WINDOW:
            self._cooling_bits &= ~(1 << number)
        if number < WINDOW:
            self._held_bits |= 1 << number
        if advance:
            self._last = number

    def continue_after(self, number: int) -> None:
        """Make the search continue after `number`, as it was before a restart."""
        self._last = number

    def release(self, number: int, at: float) -> None:
        """Give it back at the time `at`. One that is not held only starts to cool again."""
        self._cooling.pop(number, None)
        self._cooling[number] = at
        if number < WINDOW:
            self._held_bits &= ~(1 << number)
            self._cooling_bits |= 1 << number

    def _forget_cooled(self, now: float) -> None:
        while self._cooling:
            number, at = next(iter(self._cooling.items()))
            # A release "in the future" is a clock that was set back: it has cooled too.
            if at <= now < at + self._reuse_delay_s:
                return
            del self._cooling[number]
            if number < WINDOW:
                self._cooling_bits &= ~(1 << number)

    @staticmethod
    def _lowest_clear(bits: int, start: int, end: int) -> int | None:
        """The lowest number in [start, end) whose bit is clear."""
        shifted = bits >> start
        number = start + (~shifted & (shifted + 1)).bit_length() - 1
        return number if number < end else None
