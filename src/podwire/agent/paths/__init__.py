"""Whether VXLAN gets through to each peer, where the transport is `auto`.

    judge    the state machine: what was sent and answered in, `blocked` and reasons out; no I/O
    echo     ICMP echo through a VXLAN device, many peers by one socket
    prober   the clock and the sockets around the judge

A peer's kernel answers, not its agent, so that an agent that is restarted is no blocked path.
"""
