"""The node's attachments and the addresses they hold, on disk: one SQLite database, one owner.

What lives here: rows, their states, and the pools that are loaded from them. What does not: the
file itself (`database`), the kernel (the caller says what exists) and the CNI protocol.

How it works. An attachment and its addresses are written in one transaction, so neither exists
without the other. Its life is

    reserve ──▶ pending ──mark_ready──▶ ready ──begin_delete──▶ deleting ──forget──▶ (no row)
                   └──────────────begin_delete──────────────────▲

`pending` is committed before the kernel is touched and `deleting` outlives the kernel's clean-up,
so whatever a crash interrupts is still on disk at the next start. `begin_delete` gives the
addresses back at once (with the reuse delay); `forget` drops the row when the interface is really
gone.

Every row is also in memory: reads never touch the disk. A write goes to the disk first, but for
what gives back (`begin_delete`, `forget`): where the disk is full that is done in memory and owed
to the disk, which gets it before anything else that is written. So a pod can always be deleted, and
nobody gets its addresses before the disk has heard that they are free. Debts that end with the
process leave a row whose interface and namespace are gone, as a reboot does.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

import msgspec

from podwire.errors import IpamError
from podwire.ipam.database import Database
from podwire.ipam.node_subnet import RequestedAddressError, SubnetPool
from podwire.ipam.record import Key, PodIdentity, Record, Row, State, from_row, to_row
from podwire.ipam.span import REUSE_DELAY_S
from podwire.model.cluster import Attachment
from podwire.model.state import IPAddress, IPNetwork

_SET_LAST = "INSERT INTO pool VALUES (?, ?) ON CONFLICT (subnet) DO UPDATE SET last = excluded.last"
_SET_STATE = "UPDATE attachment SET state = ? WHERE container_id = ? AND ifname = ?"


class Store:
    """What the database has. All methods run in the thread that made it (sqlite3 enforces that)."""

    def __init__(
        self,
        path: Path,
        *,
        reuse_delay_s: float = REUSE_DELAY_S,
        busy_timeout_s: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open or create the database at `path`. Raises IpamError when it cannot be used.

        An agent that is just stopping is waited for, `busy_timeout_s` at most.
        """
        self._clock = clock
        self._reuse_delay_s = reuse_delay_s
        self._records: dict[Key, Record] = {}
        self._pools: dict[IPNetwork, SubnetPool] = {}
        self._db = Database(path, busy_timeout_s=busy_timeout_s)
        try:
            with self._db.errors():
                self._load()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    # Reading: from memory.

    @property
    def path(self) -> Path:
        return self._db.path

    @property
    def unwritten(self) -> str | None:
        """Why what was given back is not on the disk; None where nothing is owed to it."""
        return self._db.unwritten

    @property
    def records(self) -> Mapping[Key, Record]:
        """Every attachment, whatever its state."""
        return self._records

    def pool(self, subnet: IPNetwork) -> SubnetPool:
        """The pool of `subnet`, loaded from the database the first time that it is asked for."""
        if subnet not in self._pools:
            self._pools[subnet] = self._load_pool(subnet)
        return self._pools[subnet]

    def released(self) -> dict[IPAddress, float]:
        """Addresses that were given back a moment ago, and when; longest ago first."""
        rows = self._db.execute(
            "SELECT ip, released FROM address WHERE released IS NOT NULL ORDER BY released"
        )
        return {ip_address(text): at for text, at in rows}

    def last(self, subnet: IPNetwork) -> IPAddress | None:
        """The address of `subnet` that was handed out last; None where none ever was."""
        row = self._db.execute("SELECT last FROM pool WHERE subnet = ?", (str(subnet),)).fetchone()
        return ip_address(row[0]) if row is not None else None

    # Writing: to the disk first, then to memory.

    def reserve(
        self,
        key: Key,
        make: Callable[[tuple[IPAddress, ...]], Attachment],
        *,
        subnets: Sequence[IPNetwork],
        requested: Sequence[IPAddress] = (),
        network: str,
        pod: PodIdentity,
    ) -> Record:
        """Choose one address of each subnet and write the attachment as `pending`.

        `make` turns the chosen addresses, in the order of `subnets`, into the attachment.
        `requested` addresses are taken instead of the next free ones.
        Raises ExhaustedError or RequestedAddressError; then nothing has changed.
        """
        if key in self._records:
            raise IpamError(f"container {key.container_id} has {key.ifname} already")
        now = self._clock()
        wanted = self._match(requested, subnets)
        ips = tuple(
            wanted[subnet] if subnet in wanted else self.pool(subnet).next_free(now)
            for subnet in subnets
        )
        last = {subnet: ip for subnet, ip in zip(subnets, ips, strict=True) if subnet not in wanted}
        return self.write(make(ips), last=last, network=network, pod=pod)

    def write(
        self,
        attachment: Attachment,
        *,
        last: Mapping[IPNetwork, IPAddress],
        network: str,
        pod: PodIdentity,
        state: State = State.PENDING,
    ) -> Record:
        """Write an attachment whose addresses have been chosen, or that stands already (`ready`).

        `last` are those that the search of each subnet goes on after. Raises IpamError, also where
        an address is held already; then nothing has changed.
        """
        record = Record(attachment, network, pod, state, self._clock())
        if record.key in self._records:
            raise IpamError(f"container {record.key.container_id} has {record.key.ifname} already")
        with self._db.transaction():
            self._insert(record)
            self._db.execute_each(
                (_SET_LAST, [(str(subnet), str(ip)) for subnet, ip in last.items()])
            )
        self._records[record.key] = record
        for interface in attachment.ips:
            ip = interface.ip
            for pool in self._pools_of(ip):
                pool.hold(ip, record.owner, advance=last.get(pool.subnet) == ip)
        return record

    def mark_ready(self, key: Key) -> Record:
        """The interface of a `pending` attachment is up."""
        return self._set_state(key, State.READY)

    def rewire(self, attachment: Attachment) -> Record:
        """An attachment that is `ready` has another interface now, with the same addresses."""
        key = Key(attachment.container_id, attachment.ifname)
        before = self._records[key]
        if {one.ip for one in attachment.ips} != {one.ip for one in before.attachment.ips}:
            raise IpamError(f"container {key.container_id} would have other addresses")
        record = msgspec.structs.replace(before, attachment=attachment)
        row = to_row(record)
        with self._db.transaction():
            self._db.execute(
                f"UPDATE attachment SET {', '.join(f'{name} = ?' for name in Row._fields)}"
                " WHERE container_id = ? AND ifname = ?",
                (*row, *key),
            )
        self._records[key] = record
        return record

    def begin_delete(self, key: Key) -> Record:
        """Give the addresses back; the row stays as `deleting` until `forget`."""
        record = self._records[key]
        if record.state is State.DELETING:
            return record
        now = self._clock()
        self._db.give_back(
            (
                "UPDATE address SET container_id = NULL, ifname = NULL, released = ? WHERE ip = ?",
                [(now, str(ip.ip)) for ip in record.attachment.ips],
            ),
            (_SET_STATE, [(State.DELETING.value, *key)]),
        )
        record = msgspec.structs.replace(record, state=State.DELETING)
        self._records[key] = record
        for ip in record.attachment.ips:
            for pool in self._pools_of(ip.ip):
                pool.release(ip.ip, now)
        return record

    def forget(self, keys: Sequence[Key]) -> None:
        """Drop the rows of attachments in `deleting` whose interfaces are gone."""
        self._db.give_back(
            (
                "DELETE FROM attachment"
                " WHERE container_id = ? AND ifname = ? AND state = 'deleting'",
                [*keys],
            )
        )
        for key in keys:
            record = self._records.get(key)
            if record is not None and record.state is State.DELETING:
                del self._records[key]

    def _pools_of(self, ip: IPAddress) -> list[SubnetPool]:
        """More than one where the node's subnet has been another, smaller or larger, before."""
        return [pool for subnet, pool in self._pools.items() if ip in subnet]

    def _match(
        self, requested: Sequence[IPAddress], subnets: Sequence[IPNetwork]
    ) -> dict[IPNetwork, IPAddress]:
        wanted: dict[IPNetwork, IPAddress] = {}
        for ip in requested:
            subnet = next((s for s in subnets if ip in s), None)
            if subnet is None:
                names = " and ".join(map(str, subnets))
                raise RequestedAddressError(
                    f"requested address {ip} is outside of this node's subnet {names}"
                )
            if wanted.get(subnet, ip) != ip:
                raise RequestedAddressError(
                    f"both {wanted[subnet]} and {ip} were requested, and an interface gets one"
                    f" address of {subnet}"
                )
            self.pool(subnet).check_requested(ip)
            wanted[subnet] = ip
        return wanted

    def _insert(self, record: Record) -> None:
        row = to_row(record)
        # The columns by name: an older database has had some of them added at the end.
        self._db.execute(
            f"INSERT INTO attachment ({', '.join(Row._fields)})"
            f" VALUES ({', '.join('?' * len(row))})",
            row,
        )
        for ip in (interface.ip for interface in record.attachment.ips):
            taken = self._db.execute(
                "INSERT INTO address VALUES (?, ?, ?, NULL) ON CONFLICT (ip) DO UPDATE"
                " SET container_id = excluded.container_id, ifname = excluded.ifname,"
                " released = NULL WHERE released IS NOT NULL",
                (str(ip), *record.key),
            ).rowcount
            if taken != 1:
                raise IpamError(f"{self.path}: address {ip} is held already")

    def _set_state(self, key: Key, state: State) -> Record:
        with self._db.transaction():
            self._db.execute(_SET_STATE, (state.value, *key))
        record = msgspec.structs.replace(self._records[key], state=state)
        self._records[key] = record
        return record

    # Opening.

    def _load(self) -> None:
        now = self._clock()
        forgotten = "DELETE FROM address WHERE released NOT BETWEEN ? AND ?"
        self._db.give_back((forgotten, [(now - self._reuse_delay_s, now)]))
        columns = ", ".join(Row._fields)
        for row in self._db.execute(f"SELECT {columns} FROM attachment"):
            try:
                record = from_row(Row(*row))
            except (ValueError, TypeError) as error:
                raise sqlite3.DatabaseError(f"row {row[:2]}: {error}") from error
            self._records[record.key] = record

    def _load_pool(self, subnet: IPNetwork) -> SubnetPool:
        pool = SubnetPool(subnet, reuse_delay_s=self._reuse_delay_s)
        for record in self._records.values():
            if record.state is not State.DELETING:
                for ip in record.attachment.ips:
                    if ip.ip in subnet:
                        pool.hold(ip.ip, record.owner)
        for address, at in self.released().items():
            if address in subnet:
                pool.release(address, at)
        last = self.last(subnet)
        if last is not None:
            pool.continue_after(last)
        return pool
