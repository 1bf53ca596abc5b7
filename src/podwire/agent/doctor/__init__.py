"""`podwire doctor`, on the node's side: checks that look at one node and say what they found.

What lives here: a module a group of checks, each with `examine(subject)`, which yields what it
finds as `wire.Checked`; and `run`, which makes the checks that were asked for. What does not: how
it is shown, which is `podwire.cli.doctor`, and anything that changes the node: what differs from
the desired state is mended by the agent's own reconciler, all else is for people to decide.

    desired ── first, since it may mend                        names ── the checks' names
    agent  kernel  forwarding  overlap  clock  leftovers ── read
    tunnel  mtu  offload ── judge what measure has measured, once for all three
    guards ── what is dropped meanwhile
"""
