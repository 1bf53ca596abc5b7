"""What a thing of a node's network is, who asked for it, and what breaks without it.

What lives here, a module a kind of thing: routes, neighbours and FDB entries, links, nft rules, and
IP addresses; beneath them `knowledge`, what all of them look things up in. What does not: which of
them a request is for, and reading what a person has typed (`podwire.trace.explain`).

Each answers with the kernel's own entry, the planner's reason for it, and where the two differ with
the line that mends it. What Podwire has not made is said to be somebody else's.
"""
