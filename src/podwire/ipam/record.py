"""An attachment as the store keeps it, and its row in the database.

Values only; `podwire.ipam.store` reads and writes them.
"""

from __future__ import annotations

import enum
from ipaddress import ip_address, ip_interface
from typing import NamedTuple

import msgspec

from podwire.decoding import from_json
from podwire.model.cluster import Attachment
from podwire.model.state import IPInterface


class State(enum.StrEnum):
    """Where an attachment is in its life; see the top of `podwire.ipam.store`."""

    PENDING = "pending"
    READY = "ready"
    DELETING = "deleting"


#: Is in no container's id (CNI specification, section 2).
UNKNOWN = "@"


class Key(NamedTuple):
    """What the CNI specification identifies an attachment of a network by.

    Of an attachment that was found in the kernel, the container's id may not be known: then
    `container_id` is one that no runtime has.
    """

    container_id: str
    ifname: str

    @property
    def is_unknown(self) -> bool:
        """Whether the container's id is not known."""
        return UNKNOWN in self.container_id


class PodIdentity(msgspec.Struct, frozen=True):
    """The pod that the runtime named; all empty for a container that is not a pod.

    Podman names a container and no namespace.
    """

    namespace: str = ""
    name: str = ""
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace and self.name else self.name


class Record(msgspec.Struct, frozen=True):
    """An attachment as it is on disk. `created` is in seconds since the epoch."""

    attachment: Attachment
    network: str
    pod: PodIdentity
    state: State
    created: float

    @property
    def key(self) -> Key:
        return Key(self.attachment.container_id, self.attachment.ifname)

    @property
    def owner(self) -> str:
        """Who holds the addresses, for people: the pod, else the container."""
        return f"pod {self.pod}" if self.pod.name else f"container {self.key.container_id}"


class Row(NamedTuple):
    """A row of table `attachment`; the fields are its columns."""

    container_id: str
    ifname: str
    network: str
    netns: str
    host_ifname: str
    mac: bytes
    mtu: int
    addresses: str
    pod_namespace: str
    pod_name: str
    pod_uid: str
    state: str
    created: float
    may_spoof: int


def to_row(record: Record) -> Row:
    """The row that `record` is kept as."""
    attachment, pod = record.attachment, record.pod
    pairs = zip(attachment.ips, attachment.gateways, strict=True)
    return Row(
        container_id=attachment.container_id,
        ifname=attachment.ifname,
        network=record.network,
        netns=attachment.netns,
        host_ifname=attachment.host_ifname,
        mac=attachment.mac,
        mtu=attachment.mtu,
        addresses=msgspec.json.encode([(str(ip), str(via)) for ip, via in pairs]).decode(),
        pod_namespace=pod.namespace,
        pod_name=pod.name,
        pod_uid=pod.uid,
        state=record.state.value,
        created=record.created,
        may_spoof=attachment.may_spoof,
    )


def from_row(row: Row) -> Record:
    """The record that `row` keeps."""
    pairs = from_json(row.addresses, list[tuple[str, str]])
    ips: list[IPInterface] = [ip_interface(ip) for ip, _ in pairs]
    pod = PodIdentity(row.pod_namespace, row.pod_name, row.pod_uid)
    attachment = Attachment(
        container_id=row.container_id,
        ifname=row.ifname,
        netns=row.netns,
        host_ifname=row.host_ifname,
        mac=row.mac,
        ips=tuple(ips),
        gateways=tuple(ip_address(via) for _, via in pairs),
        pod=str(pod),
        mtu=row.mtu,
        may_spoof=bool(row.may_spoof),
    )
    return Record(attachment, row.network, pod, State(row.state), row.created)
