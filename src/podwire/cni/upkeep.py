"""What becomes of interfaces that stand, without any runtime asking: made anew, or wired anew.

What lives here: interfaces that somebody deleted, and those of a wiring that the network has no
more. What does not: how one is made (`attachments`), and who sees that one is missing (the agent).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec

from podwire.cni.attachments import Attachments, about, namespace_exists
from podwire.cni.failures import as_cni_error
from podwire.cni.naming import host_ifname
from podwire.cni.types import Code
from podwire.errors import PodwireError
from podwire.ipam.record import Record, State
from podwire.model.cluster import Attachment, NetworkConfig
from podwire.plan.wiring import wiring_of

log = logging.getLogger(__name__)


async def attach_again(
    attachments: Attachments, network: NetworkConfig, host_ifnames: Iterable[str]
) -> list[str]:
    """Make interfaces that vanished anew, with the addresses they had; the names of those made.

    One whose namespace can't be opened, or that the kernel refuses, is not tried again: it
    stays away until the runtime's DEL.
    """
    names, made = set(host_ifnames), []
    for record in attachments.ready:
        if record.attachment.host_ifname not in names or record.key in attachments.lost:
            continue
        async with attachments.held(record.key):
            record = attachments.store.records.get(record.key, record)
            if record.state is not State.READY:
                continue
            if not namespace_exists(record.attachment):
                log.info("gone with its namespace", extra=about(record))
                attachments.lost.add(record.key)
                continue
            try:
                await attachments.make_again(network, record)
            except PodwireError as error:
                log.error("not attached again", extra=about(record, error=error))
                if as_cni_error(error).code is not Code.TRY_AGAIN_LATER:
                    attachments.lost.add(record.key)
            else:
                made.append(record.attachment.host_ifname)
                log.info("attached again", extra=about(record))
    return made


def to_rewire(attachments: Attachments, network: NetworkConfig) -> list[Attachment]:
    """The interfaces that were made for another wiring than the network's, as they are."""
    return [one.attachment for one in attachments.ready if _rewired(network, one) is not None]


async def rewire(attachments: Attachments, network: NetworkConfig) -> list[str]:
    """Make those anew, with the addresses that they have; the pods that got one.

    First the old interface goes, then the database changes, then the new one comes: whatever
    is interrupted in between is completed at the next start, or by `attach_again`.
    """
    made = []
    for record in attachments.ready:
        async with attachments.held(record.key):
            record = attachments.store.records.get(record.key, record)
            attachment = _rewired(network, record)
            if record.state is not State.READY or attachment is None:
                continue
            try:
                attachments.detached(record.attachment)
                await attachments.in_worker(attachments.wiring.unregister, [record.attachment])
                record = attachments.store.rewire(attachment)
                await attachments.make_again(network, record)
            except PodwireError as error:
                log.error("not wired anew", extra=about(record, error=error))
            else:
                made.append(record.owner)
                log.info("wired anew", extra=about(record))
            # In either case it is wanted: what failed is tried again with what is missing.
            attachments.attached(attachment)
    return made


def _rewired(network: NetworkConfig, record: Record) -> Attachment | None:
    """The interface that an attachment has in the network; None where it has it already, and for
    addresses that are not of this node's lease: to wire these would lead nowhere."""
    before = record.attachment
    if not all(any(ip.ip in one for one in network.lease.subnets) for ip in before.ips):
        return None
    seen = [wiring_of(network.fabric).seen_by_pod(network, ip.ip) for ip in before.ips]
    name = before.host_ifname
    if not record.key.is_unknown:  # Else that name is what its container is known by.
        name = host_ifname(network.fabric, record.key, record.pod)
    after = msgspec.structs.replace(
        before,
        host_ifname=name,
        ips=tuple(ip for ip, _ in seen),
        gateways=tuple(gateway for _, gateway in seen),
    )
    # A pod keeps the MTU that it was made with, unless it is made anew for something else.
    return None if after == before else msgspec.structs.replace(after, mtu=network.mtu)
