"""The ranges of all nodes as one node sees them, and its requests for more.

What lives here: following the documents, claiming, asking, giving. What does not: addresses
(`range_allocator`) and the decisions themselves (`ranges`).

How it works. All that is known comes out of one watch, so it never goes back in time. What this
node has given away counts as given from before the request on, until the watch has shown it. A
range is used once this agent has written its own instance to the document, so that whoever wants to
reclaim it because the node was gone for a while is refused, or this node knows of it. What was
given by an agent that has died meanwhile is sent back (`ranges.is_valid`).

    node2 ──askedBy──▶ token of node1 ──(watch)──▶ node1 cuts its free space: a token for node2
          ◀─(watch)── new token, or askedBy without node2: nothing to give
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NoReturn

import msgspec

from podwire.errors import InputError, PodwireError, StoreUnavailableError
from podwire.ipam import ranges
from podwire.ipam.node_subnet import ContendedError, ExhaustedError
from podwire.ipam.ranges import Range, Token, decode_token, encode_token
from podwire.log import fields
from podwire.model.documents import Document, DocumentConflictError, Documents
from podwire.model.state import IPAddress, IPNetwork

log = logging.getLogger(__name__)

#: Seconds that a node which is asked for a part of its range has, and all together.
_ANSWER_S, _PATIENCE_S = 2.0, 8.0
#: Seconds between two tries to write what nobody waits for.
_RETRY_S = 2.0


class RangeRing:
    """One node's view and part. `start` it before anything else; all runs in one event loop."""

    def __init__(
        self,
        documents: Documents,
        node: str,
        *,
        networks: Sequence[IPNetwork],
        held: Callable[[IPNetwork], Collection[int]],
        updated: Callable[[], None],
    ) -> None:
        """`held(network)` are the addresses in use here, `updated` is told of every change."""
        self._documents = documents
        self._node = node
        self._networks = tuple(networks)
        self._held = held
        self._updated = updated
        self._instance = secrets.token_hex(8)
        self._known: dict[str, tuple[Token, Document]] = {}
        self._given: dict[str, Token] = {}
        self._served: set[tuple[str, str]] = set()
        self._silent: set[str] = set()
        self._synced = False
        self._problem: PodwireError | None = None
        self._lost: dict[str, Token] = {}
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[NoReturn]] = []

    # What is known.

    @property
    def tokens(self) -> list[Token]:
        """All tokens, what this node has given away included."""
        known = {name: token for name, (token, _) in self._known.items()}
        return list({**self._given, **known}.values())

    def own(self, network: IPNetwork) -> list[Range]:
        """The ranges that this node may use, the one that it has had for longest in front."""
        return ranges.in_order(
            one
            for one in ranges.ranges(self.tokens, network)
            if one.token.node == self._node and one.token.instance == self._instance
        )

    def owner(self, ip: IPAddress, network: IPNetwork) -> str | None:
        """The node whose range an address is in."""
        found = ranges.ranges(self.tokens, network)
        return next((one.token.node for one in found if one.has(ip)), None)

    # Life.

    async def start(self) -> None:
        """Follow the documents, until there is a range of each network.

        Raises StoreUnavailableError where the documents can't be read, or what else is in the way;
        call it again then.
        """
        if not self._tasks:
            watch = self._documents.watch("ipamranges", self._told)
            self._tasks = [asyncio.create_task(watch), asyncio.create_task(self._serve())]
        self._problem = None
        try:
            await self._until(
                lambda: all(map(self.own, self._networks)) or self._problem is not None, _PATIENCE_S
            )
        except TimeoutError:
            raise StoreUnavailableError("the ranges of the network can't be read") from None
        if self._problem is not None:
            raise self._problem

    async def run(self) -> NoReturn:
        """Until something fails that should not; then it may be started again."""
        try:
            await asyncio.gather(*self._tasks)
        finally:
            await self.stop()
        raise AssertionError("neither of them ends")

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def _told(self, documents: Mapping[str, Document]) -> None:
        known = {}
        for name, document in documents.items():
            before = self._known.get(name)
            if before is not None and before[1].revision == document.revision:
                known[name] = before
                continue
            try:
                known[name] = decode_token(document), document
            except InputError as error:
                log.error("range left out", extra=fields(reason=error))
        for name, (token, _) in self._known.items():
            if name not in known and token.node == self._node and token.instance:
                log.error("range lost", extra=fields(first=token.first, network=token.network))
                if ranges.is_slot(token):
                    self._lost[name] = token
        self._known = known
        self._synced = True
        for name in self._given.keys() & known.keys():
            del self._given[name]
        self._served = {
            (name, asker)
            for name, asker in self._served
            if name in known and asker in known[name][0].asked_by
        }
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._updated()

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait for a change that makes `condition` true. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                await self._changed.wait()

    # Getting more.

    async def extend(self, network: IPNetwork) -> None:
        """Have one range more, or a larger one: a free slot, else a part of another node's.

        Raises ExhaustedError, ContendedError where a node has not answered, or what the store does.
        """
        try:
            async with asyncio.timeout(_PATIENCE_S):
                if await self._claim(network):
                    return
                silent = await self._ask_all(network)
        except TimeoutError:
            raise ContendedError(
                f"no part of {network} could be had in time", remedy="try again"
            ) from None
        if silent == "":
            return
        if silent is not None:
            raise ContendedError(
                f"{silent} did not answer the request for a part of its range of {network}",
                remedy="try again; if it is gone for good, delete its Node object",
            )
        raise ExhaustedError(
            f"no address of {network} is free, on this node or any other",
            remedy="delete pods, or give the cluster a larger pod network",
        )

    async def _claim(self, network: IPNetwork) -> bool:
        while (first := ranges.choose_slot(network, self.tokens, self._node)) is not None:
            token = Token(network, first, self._node, self._instance, self._next_sequence())
            try:
                await self._documents.create("ipamranges", token.name, encode_token(token))
            except DocumentConflictError:
                mine = False
            else:
                mine = True
                log.info("range claimed", extra=fields(first=first, network=network))
            # Its end is what the watch shows from now on.
            await self._until(lambda name=token.name: name in self._known, _PATIENCE_S)  # type: ignore[misc]
            if mine:
                return True
        return False

    async def _ask_all(self, network: IPNetwork) -> str | None:
        """Ask one node after the other: "" where one gave, a node that was silent, else None."""
        before = self._size(network)
        silent = None
        for token in self.in_turn(network):
            try:
                await self._ask(token.name, before, network)
                self._silent.discard(token.node)
            except TimeoutError:
                silent = f"node {token.node}"
                self._silent.add(token.node)
                await self._withdraw(token.name)
            if self._size(network) > before:
                return ""
        return silent

    def in_turn(self, network: IPNetwork) -> list[Token]:
        """Whom to ask for a part: who did not answer the last time when all others have been."""
        lenders = ranges.lenders(ranges.ranges(self.tokens, network), self._node)
        return sorted(lenders, key=lambda one: one.node in self._silent)

    async def _ask(self, name: str, before: int, network: IPNetwork) -> None:
        """Ask the owner of one token, and wait for its answer. Raises TimeoutError."""
        async with asyncio.timeout(_ANSWER_S):
            while name in self._known:
                token, document = self._known[name]
                asked = msgspec.structs.replace(token, asked_by=(*token.asked_by, self._node))
                try:
                    written = await self._documents.replace(document, encode_token(asked))
                except DocumentConflictError:
                    await self._until_newer(name, {document.revision})
                    continue
                unanswered = {document.revision, written.revision}
                while self._size(network) <= before and name in self._known:
                    # What comes while this one writes is not missed.
                    changed = self._changed
                    token, document = self._known[name]
                    await self._touch_all()
                    if document.revision not in unanswered and self._node not in token.asked_by:
                        return
                    await changed.wait()
                return

    async def _withdraw(self, name: str) -> None:
        known = self._known.get(name)
        if known is None or self._node not in known[0].asked_by:
            return
        others = tuple(one for one in known[0].asked_by if one != self._node)
        try:
            value = encode_token(msgspec.structs.replace(known[0], asked_by=others))
            await self._documents.replace(known[1], value)
        except PodwireError as error:
            # Then it may be given something yet, which it can use.
            log.info("request not withdrawn", extra=fields(range=name, reason=error))

    async def _until_newer(self, name: str, revisions: set[str]) -> None:
        await self._until(
            lambda: name not in self._known or self._known[name][1].revision not in revisions,
            _PATIENCE_S,
        )

    def _size(self, network: IPNetwork) -> int:
        return sum(one.size for one in self.own(network))

    def _next_sequence(self) -> int:
        own = (token.sequence for token in self.tokens if token.node == self._node)
        return 1 + max(own, default=0)

    # What has to be done for others, and to keep what one has.

    def _untouched(self) -> Iterator[tuple[Token, Document]]:
        """What is this node's, and not yet this agent's."""
        for token, document in self._known.values():
            if token.node == self._node and token.instance != self._instance:
                yield token, document

    async def _serve(self) -> NoReturn:
        while True:
            changed = self._changed
            try:
                await self._touch_all()
                for token, document in list(self._known.values()):
                    if token.node == self._node and token.asked_by:
                        await self._answer(token, document)
                if self._synced:
                    await self._keep()
            except PodwireError as error:
                log.warning("ranges are not up to date", extra=fields(reason=error))
                self._problem = error
                self._announce()
                await asyncio.sleep(_RETRY_S)
            else:
                await changed.wait()

    async def _keep(self) -> None:
        """Have back what others took for a dead node's, and at least one range of each network."""
        while self._lost:
            name, token = next(iter(self._lost.items()))
            again = msgspec.structs.replace(token, instance=self._instance, asked_by=())
            with contextlib.suppress(DocumentConflictError):
                await self._documents.create("ipamranges", name, encode_token(again))
                await self._until(lambda name=name: name in self._known, _PATIENCE_S)  # type: ignore[misc]
            del self._lost[name]
        for network in self._networks:
            if not self.own(network) and not list(self._untouched()):
                await self.extend(network)

    async def _touch_all(self) -> None:
        """Make what is this node's this agent's."""
        for token, document in list(self._untouched()):
            if not ranges.is_valid(token, self.tokens):
                await self._send_back(token, document)
                continue
            sequence = token.sequence or self._next_sequence()
            mine = msgspec.structs.replace(token, instance=self._instance, sequence=sequence)
            with contextlib.suppress(DocumentConflictError, TimeoutError):
                await self._documents.replace(document, encode_token(mine))
                await self._until_newer(token.name, {document.revision})

    async def _send_back(self, token: Token, document: Document) -> None:
        log.warning("range not taken", extra=fields(first=token.first, reason="its giver died"))
        with contextlib.suppress(DocumentConflictError, TimeoutError):
            await self._documents.delete(document)
            await self._until_newer(token.name, {document.revision})

    async def _answer(self, token: Token, document: Document) -> None:
        """Give everyone who asks a part, and strike them off."""
        for asker in token.asked_by:
            if (token.name, asker) not in self._served:
                self._served.add((token.name, asker))
                await self._give(token.network, asker)
        answered = msgspec.structs.replace(token, asked_by=())
        try:
            await self._documents.replace(document, encode_token(answered))
            await self._until_newer(token.name, {document.revision})
        except (DocumentConflictError, TimeoutError):
            return

    async def _give(self, network: IPNetwork, asker: str) -> None:
        piece = ranges.cut(self.own(network), self._held(network))
        if piece is None:
            log.info("nothing to give", extra=fields(to=asker, network=network))
            return
        whole, first, end = piece
        kind = type(network.network_address)
        if end < whole.end:
            rest = Token(network, kind(end), self._node, self._instance, self._next_sequence())
            await self._put(rest)
        await self._put(Token(network, kind(first), asker, giver=self._instance))
        log.info("range given", extra=fields(to=asker, first=kind(first), addresses=end - first))

    async def _put(self, token: Token) -> None:
        """Write a token inside of an own range: what begins there is as it says from now on."""
        self._given[token.name] = token
        self._announce()
        while True:
            try:
                await self._documents.create("ipamranges", token.name, encode_token(token))
            except DocumentConflictError:
                return  # It has arrived, an earlier time.
            except StoreUnavailableError as error:
                # Whether it has arrived is not known, so it has to be tried until it is.
                log.warning("range not given yet", extra=fields(reason=error))
                await asyncio.sleep(_RETRY_S)
            else:
                return
