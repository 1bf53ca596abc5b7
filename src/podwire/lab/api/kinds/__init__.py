"""The kinds that the server serves, one module each; `KINDS` is the table.

A module describes one kind whole: names, schema, defaults, rules, columns.
"""

from podwire.lab.api.kinds.config_map import CONFIG_MAP
from podwire.lab.api.kinds.event import EVENT
from podwire.lab.api.kinds.ip_pool import IP_POOL
from podwire.lab.api.kinds.ipam_block import IPAM_BLOCK
from podwire.lab.api.kinds.ipam_range import IPAM_RANGE
from podwire.lab.api.kinds.lease import LEASE
from podwire.lab.api.kinds.namespace import NAMESPACE
from podwire.lab.api.kinds.node import NODE
from podwire.lab.api.kinds.pod import POD

KINDS = (NAMESPACE, NODE, POD, CONFIG_MAP, EVENT, LEASE, IP_POOL, IPAM_BLOCK, IPAM_RANGE)

__all__ = [
    "CONFIG_MAP",
    "EVENT",
    "IPAM_BLOCK",
    "IPAM_RANGE",
    "IP_POOL",
    "KINDS",
    "LEASE",
    "NAMESPACE",
    "NODE",
    "POD",
]
