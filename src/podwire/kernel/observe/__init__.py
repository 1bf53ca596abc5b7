"""Looking at packets: taps on interfaces, on what the kernel drops, on what nft decides.

What lives here: the sockets and programs that see packets, and the questions that the kernel
answers about one. Everything is held by file descriptors, so that a process that dies leaves
nothing behind. What does not: what the sightings mean, which is `podwire.trace`'s business.
"""
