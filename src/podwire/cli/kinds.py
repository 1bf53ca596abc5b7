"""From the words on a command line to kinds and names of objects.

`KIND NAME…`, `KIND,KIND` and `KIND/NAME…` as kubectl takes them. Kinds that Podwire does not
know itself are asked of the server, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import click

from podwire.cluster.kube import KubeClient, Resource
from podwire.cluster.kube.discovery import discover
from podwire.cluster.kube.resources import BUILT_IN, find_by_kind, find_by_word
from podwire.errors import PodwireError


@dataclass(frozen=True, slots=True)
class Selection:
    """Objects of one kind, by name; all of the kind when `names` is empty."""

    resource: Resource
    names: tuple[str, ...] = ()


class Kinds:
    """The kinds of one server: the built-in ones without a question, the others by discovery."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._discovered: Sequence[Resource] | None = None

    async def by_word(self, word: str) -> Resource:
        """The kind that `word` means. Raises `PodwireError` when the server has none."""
        resource = find_by_word(word) or find_by_word(word, await self._all())
        if resource is None:
            raise PodwireError(
                f'the server has no resource type "{word}"',
                remedy=f"it has: {', '.join(r.plural for r in await self._all())}",
            )
        return resource

    async def by_kind(self, api_version: str, kind: str) -> Resource | None:
        """The kind that an object names, or None when the server has none."""
        return find_by_kind(api_version, kind) or find_by_kind(api_version, kind, await self._all())

    async def _all(self) -> Sequence[Resource]:
        if self._discovered is None:
            self._discovered = await discover(self._client) or BUILT_IN
        return self._discovered


async def parse(client: KubeClient, words: Sequence[str]) -> list[Selection]:
    """What `words` select. Raises `click.UsageError` when they mix the two ways of naming."""
    kinds = Kinds(client)
    if any("/" in word for word in words):
        return await _parse_pairs(kinds, words)
    kind_words, names = words[0], tuple(words[1:])
    return [Selection(await kinds.by_word(word), names) for word in kind_words.split(",") if word]


async def _parse_pairs(kinds: Kinds, words: Sequence[str]) -> list[Selection]:
    """Neighbours of the same kind are one selection, and so one table."""
    selections: list[Selection] = []
    for word in words:
        kind_word, slash, name = word.partition("/")
        if not slash or not kind_word or not name:
            raise click.UsageError(f"{word!r}: expected every argument to be KIND/NAME")
        resource = await kinds.by_word(kind_word)
        if selections and selections[-1].resource == resource:
            selections[-1] = Selection(resource, (*selections[-1].names, name))
        else:
            selections.append(Selection(resource, (name,)))
    return selections
