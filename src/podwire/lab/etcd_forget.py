"""A node that is removed has its lease in etcd no longer, where it would live on for a day.

What lives here: one command, `python -m podwire.lab.etcd_forget NODE`, to be run in the network
namespace of the lab's etcd; and running it there.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress

from podwire.cluster.etcd.client import EtcdClient
from podwire.cluster.etcd.directory import read_entry
from podwire.cluster.etcd.layout import Layout
from podwire.cluster.etcd.messages import delete
from podwire.cluster.etcd.url import parse_url
from podwire.errors import InputError, LabError
from podwire.lab.faults import ETCD_PORT
from podwire.lab.registry import NETNS_DIR, LabInfo


def forget(lab: LabInfo, node: str) -> None:
    """Delete the node's lease. Raises LabError."""
    inside = ["nsenter", f"--net={NETNS_DIR / lab.underlay}", sys.executable, "-m", __name__, node]
    done = subprocess.run(inside, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise LabError(
            f"{node}'s lease could not be deleted: {lines[-1] if lines else 'no reason given'}",
            remedy="it expires within a day",
        )


async def _delete(node: str) -> None:
    config = parse_url(f"etcd://localhost:{ETCD_PORT}")
    layout = Layout(config.prefix)
    async with EtcdClient(config) as client:
        listing = await client.range(*layout.watched)
        for kv in listing.kvs:
            with suppress(InputError):
                entry = read_entry(layout, kv)
                if entry is not None and entry.name == node:
                    await client.txn([], [delete(kv.key)])


if __name__ == "__main__":
    asyncio.run(_delete(sys.argv[1]))
