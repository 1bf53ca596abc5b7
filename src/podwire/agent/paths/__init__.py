"""Whether VXLAN gets through to each peer, where the transport is `auto`.

    judge    the state machine: what was sent and answered in, `blocked` and reasons out; no I/O
    targets  whom to ask what: the VTEPs of those peers that have another way, too; no I/O
    prober   the clock and the sockets around the judge

Peers are asked by ARP and NDP on the VXLAN device (`podwire.kernel.solicit`). An echo's answer
would come by whatever way the peer's routes lead back, which is another one once VXLAN is blocked.
A peer's kernel answers, not its agent, so that an agent that is restarted is no blocked path.
"""
