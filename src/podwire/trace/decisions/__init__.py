"""What the kernel decides for a packet at each kind of hop, and what of that stops it.

What lives here, by the kernel's own parts: routing (`routing`, `ways`, `refusals`, `neighbors`),
bridges and cables (`switching`, `devices`), the tunnel (`tunneling`, `straying`); beneath them what
they ask with (`vantage`, `flow`) and how a problem is mended (`mend`). What does not: which of them
a hop needs, which is `podwire.trace.decide`.

A problem is only looked for where a packet ended, and only told where it stops that packet: what
differs from what is wanted and does not matter to it is `podwire doctor`'s business.
"""
