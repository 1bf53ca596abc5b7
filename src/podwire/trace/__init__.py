"""The packet's path: probe, observe, order, explain, render.

What lives here: the `Trace` and all that makes one out of sightings; the agent's side of it (the
observer) and the asker's (the session). What does not: sockets of the kernel, which are in
`podwire.kernel.observe`, and the cluster's objects.
"""
