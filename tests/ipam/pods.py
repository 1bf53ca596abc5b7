"""Pods as IPAM sees them: what ADD and DEL do, less the kernel."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from podwire.ipam.allocator import Allocator, Wish
from podwire.ipam.record import Key, PodIdentity, Record
from podwire.ipam.store import Store
from podwire.model.cluster import Attachment
from podwire.model.state import IPAddress


async def add(allocator: Allocator, name: str, *ips: str, **wish: Any) -> Record:
    """What ADD does, with these addresses asked for."""

    def make(chosen: tuple[IPAddress, ...]) -> Attachment:
        return Attachment(
            container_id=name,
            ifname="eth0",
            netns=f"/run/netns/{name}",
            host_ifname=f"veth{name}"[:15],
            mac=bytes(6),
            ips=tuple(ip_interface(ip_network(ip)) for ip in chosen),
            gateways=chosen,
            pod=f"default/{name}",
        )

    return await allocator.reserve(
        Key(name, "eth0"),
        make,
        Wish(ips=tuple(map(ip_address, ips)), **wish),
        network="podwire",
        pod=PodIdentity("default", name, "uid"),
    )


def delete(allocator: Allocator, store: Store, name: str) -> None:
    """What DEL does."""
    record = store.begin_delete(Key(name, "eth0"))
    allocator.released(record)
    store.forget([record.key])


def ips_of(record: Record) -> list[str]:
    return [str(one.ip) for one in record.attachment.ips]
