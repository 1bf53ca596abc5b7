"""Where things are below a prefix.

    PREFIX/config               the network's configuration         as Flannel has them
    PREFIX/subnets/SUBNET       a node's subnet                     "
    PREFIX/nodes/NAME           a node that has no one subnet       ours
    PREFIX/addresses/…          documents of IPAM                   ours

Nodes are between the other two in the order of keys, so that one watch sees all three; documents
are not, since a thousand nodes' claims of blocks are nobody else's business. Pure.
"""

from __future__ import annotations

import msgspec


class Layout(msgspec.Struct, frozen=True):
    """The keys below `prefix`, which has no slash at its end."""

    prefix: str

    @property
    def config(self) -> bytes:
        return f"{self.prefix}/config".encode()

    @property
    def subnets(self) -> bytes:
        return f"{self.prefix}/subnets/".encode()

    @property
    def nodes(self) -> bytes:
        return f"{self.prefix}/nodes/".encode()

    @property
    def documents(self) -> bytes:
        return f"{self.prefix}/addresses/".encode()

    @property
    def watched(self) -> tuple[bytes, bytes]:
        """The range with the configuration and every node: first key, and the end."""
        return self.config, f"{self.prefix}/subnets0".encode()

    def subnet(self, name: str) -> bytes:
        return self.subnets + name.encode()

    def node(self, name: str) -> bytes:
        return self.nodes + name.encode()
