"""The etcd v3 store, laid out as Flannel's: leases of subnets, and documents with compare-and-swap.

`url` reads what a person names a store with, `transport` and `client` speak to etcd, `mirror` keeps
up with a range of keys. `network`, `values` and `choice` are Flannel's formats and rules, without
I/O; `directory` makes nodes of them. `claim` acquires this node's subnet, and `leases` is all of
that as a `LeaseSource`.
"""
