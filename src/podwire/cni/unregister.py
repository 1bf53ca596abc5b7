"""The second half of DEL: interfaces that are cut off already are deleted in the background.

The kernel waits for a grace period (about 20 ms) with every veth pair that it deletes, which is
longer than the rest of a DEL together. So DEL answers when the host's end is cut off and the row
says `deleting`; this task deletes the pairs, all that have come together in one batch, and then
drops the rows. A crash loses nothing: the rows are found at the next start.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Sequence

from podwire.errors import KernelError, PodwireError
from podwire.ipam.record import Key, Record, State
from podwire.ipam.store import Store
from podwire.log import fields

log = logging.getLogger(__name__)


class Unregistrar:
    """Deletes interfaces of rows in `deleting`; `unregister` does it, in a worker thread.

    Lives in the event loop that `start` is called in.
    """

    def __init__(
        self, store: Store, unregister: Callable[[Sequence[Record]], Awaitable[None]]
    ) -> None:
        self._store = store
        self._unregister = unregister
        self._waiting: dict[Key, asyncio.Future[None]] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take up what is `deleting` in the store, and go on with all that comes."""
        self._task = asyncio.create_task(self._run())
        for record in list(self._store.records.values()):
            if record.state is State.DELETING:
                self.add(record.key)

    async def stop(self) -> None:
        """Finish what is queued and end."""
        while self._waiting:
            await self.gone(next(iter(self._waiting)))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def add(self, key: Key) -> None:
        """Queue a row that is `deleting`."""
        if key not in self._waiting:
            self._waiting[key] = asyncio.get_running_loop().create_future()
            self._wake.set()

    async def gone(self, key: Key) -> None:
        """Wait until the interface is gone and the row dropped, or the kernel has refused.

        A refused one is tried again by the next `gone`, GC or start.
        """
        if key in self._store.records:
            self.add(key)
        if key in self._waiting:
            await asyncio.shield(self._waiting[key])

    async def make_room(self, key: Key, netns: str, host_ifname: str) -> None:
        """Wait until nothing of an earlier attachment is in the way of a new one.

        In the way is one of the same key, one of another container in the same namespace with an
        interface of that name, and one whose host end has the same name. Raises KernelError when
        it can't be deleted.
        """
        for other in [key, *self._waiting]:
            record = self._store.records.get(other)
            if record is not None and (
                other == key
                or (record.attachment.netns, other.ifname) == (netns, key.ifname)
                or record.attachment.host_ifname == host_ifname
            ):
                await self.gone(other)
        if key in self._store.records:
            raise KernelError(
                f"{key.ifname} of an earlier attachment could not be deleted", errno=errno.EBUSY
            )

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch = dict(self._waiting)
            found = (self._store.records.get(key) for key in batch)
            records = [one for one in found if one is not None and one.state is State.DELETING]
            try:
                await self._unregister(records)
                self._store.forget([record.key for record in records])
            except Exception as error:
                # Whatever it is, the task has to go on: requests wait for it.
                bug = None if isinstance(error, PodwireError) else error
                names = ",".join(record.attachment.host_ifname for record in records)
                log.error(
                    "interfaces not deleted", extra=fields(links=names, error=error), exc_info=bug
                )
            finally:
                for key, future in batch.items():
                    del self._waiting[key]
                    future.set_result(None)
