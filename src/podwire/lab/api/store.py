"""Versions of objects in SQLite: the one place that holds state.

What lives here: keys, versions, transactions, compaction. It knows bytes and keys, nothing of what
an object means (`objects`) nor who listens (`hub`).

Theory of operation. Each write appends one row to `versions` under the next *revision*, the global
counter that clients see as resourceVersion; a row links to the one that it supersedes. `objects`
points from a key to its live row. So the same table is the state, the event log that watches
replay, and the past that a paged list reads to be one consistent snapshot. Compaction drops what
was superseded before a revision; older reads then fail with `Compacted` (410 Gone upstairs).

Committed means written to the WAL: a killed process loses nothing that was acknowledged (a power
cut may lose the last moments, which a lab can bear). The connection holds the database exclusively,
so two servers on one file cannot interleave revisions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from podwire.errors import LabError

HISTORY = 10_000
"""Superseded versions to keep for watches and paged lists, in revisions."""

_BUSY_S = 2.0
_SLACK = 1_000
_COMPACTION_STEP = 2_000
_FORMAT = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS versions (
    revision INTEGER PRIMARY KEY, type TEXT NOT NULL, kind TEXT NOT NULL,
    namespace TEXT NOT NULL, name TEXT NOT NULL, previous INTEGER, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS objects (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL,
    PRIMARY KEY (kind, namespace, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS compaction (revision INTEGER NOT NULL);
INSERT INTO compaction SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM compaction);
"""


class Key(NamedTuple):
    """What identifies an object: its resource (`pods`, `leases.coordination.k8s.io`) and names."""

    kind: str
    namespace: str
    name: str


class Stored(NamedTuple):
    """A version of an object: its key, revision and encoded body."""

    key: Key
    revision: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """One committed write. `type` is ADDED, MODIFIED or DELETED; `previous` what it superseded."""

    revision: int
    type: str
    key: Key
    body: bytes
    previous: bytes | None


class Compacted(Exception):
    """The revision asked for is older than what is kept."""


class Store:
    """The database. Not thread-safe: used from the event loop's thread only."""

    def __init__(self, path: Path | str, *, history: int = HISTORY) -> None:
        """Open or create the database; raise `LabError` when it is held or not ours."""
        self._history = history
        self._pending: list[Change] | None = None
        self.on_commit: Callable[[list[Change]], None] = lambda changes: None
        """Called after each commit with what it wrote, in order."""
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_S)
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, _FORMAT):
                raise LabError(
                    f"{path} has format {found}, this version reads {_FORMAT}",
                    remedy="take the lab down with the version that made it",
                )
            self._db.execute("BEGIN IMMEDIATE")
            for statement in _TABLES.strip().rstrip(";").split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {_FORMAT}")
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise LabError(
                f"cannot open the lab's database {path}: {error}",
                remedy="is another API server running on it?",
            ) from error
        except sqlite3.DatabaseError as error:
            raise LabError(
                f"{path} is not a lab's database: {error}", remedy="move it away, then start again"
            ) from error
        self.compacted: int = self._db.execute("SELECT revision FROM compaction").fetchone()[0]
        newest = self._db.execute("SELECT max(revision) FROM versions").fetchone()[0]
        self.revision: int = max(newest or 1, 1)
        """The newest revision. Begins at 1, as 0 means "any" in the protocol."""

    def close(self) -> None:
        """Checkpoint and close; the store is unusable afterwards."""
        self._db.close()

    # --- reading ---

    def get(self, key: Key) -> Stored | None:
        """The live version of an object."""
        row = self._db.execute(
            "SELECT v.revision, v.body FROM objects o JOIN versions v ON v.revision = o.revision"
            " WHERE o.kind = ? AND o.namespace = ? AND o.name = ?",
            key,
        ).fetchone()
        return Stored(key, row[0], row[1]) if row else None

    def scan(
        self,
        kind: str,
        namespace: str | None = None,
        *,
        at: int | None = None,
        after: tuple[str, str] = ("", ""),
        limit: int = -1,
    ) -> list[Stored]:
        """Objects of a kind by (namespace, name), those beyond `after`, at most `limit`.

        `at`: as they were at that revision; raises `Compacted` when it is no longer known.
        """
        query = self._query("v.revision, v.body", namespace, at)
        rows = self._db.execute(
            f"{query} ORDER BY 1, 2 LIMIT :limit",
            {
                "kind": kind,
                "namespace": namespace,
                "after_namespace": after[0],
                "after_name": after[1],
                "at": at,
                "limit": limit,
            },
        )
        return [Stored(Key(kind, row[0], row[1]), row[2], row[3]) for row in rows]

    def count(
        self,
        kind: str,
        namespace: str | None = None,
        *,
        at: int | None = None,
        after: tuple[str, str] = ("", ""),
    ) -> int:
        """How many objects `scan` would return."""
        row = self._db.execute(
            f"SELECT count(*) FROM ({self._query('v.revision', namespace, at)})",
            {
                "kind": kind,
                "namespace": namespace,
                "after_namespace": after[0],
                "after_name": after[1],
                "at": at,
            },
        ).fetchone()
        return int(row[0])

    def _query(self, columns: str, namespace: str | None, at: int | None) -> str:
        """SELECT of namespace, name and `columns` of a kind's versions `v`, now or `at`."""
        where = "o.kind = :kind AND (o.namespace, o.name) > (:after_namespace, :after_name)"
        if namespace is not None:
            where += " AND o.namespace = :namespace"
        live = (
            f"SELECT o.namespace, o.name, {columns} FROM objects o"
            f" JOIN versions v ON v.revision = o.revision WHERE {where}"
        )
        if at is None or at == self.revision:
            return live
        self._check_known(at)
        # What was superseded since is live again when looking back; a later deletion is too.
        return (
            f"{live} AND o.revision <= :at UNION ALL"
            f" SELECT o.namespace, o.name, {columns} FROM versions o"
            " JOIN versions v ON v.revision = o.previous"
            f" WHERE o.revision > :at AND v.revision <= :at AND {where}"
        )

    def changes_after(self, revision: int, limit: int) -> list[Change]:
        """The writes after `revision`, oldest first; raises `Compacted`."""
        self._check_known(revision)
        rows = self._db.execute(
            "SELECT v.revision, v.type, v.kind, v.namespace, v.name, v.body, p.body"
            " FROM versions v LEFT JOIN versions p ON p.revision = v.previous"
            " WHERE v.revision > ? ORDER BY v.revision LIMIT ?",
            (revision, limit),
        )
        return [Change(row[0], row[1], Key(*row[2:5]), row[5], row[6]) for row in rows]

    def _check_known(self, revision: int) -> None:
        if not self.compacted <= revision <= self.revision:
            raise Compacted(f"revision {revision} is not within what is kept")

    # --- writing ---

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Group writes: all or none, one commit. Nesting joins the outer transaction."""
        if self._pending is not None:
            yield
            return
        start = self.revision
        self._pending = []
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            self.revision = start
            self._pending = None
            raise
        changes, self._pending = self._pending, None
        if changes:
            self.on_commit(changes)
            self._compact()

    def put(self, key: Key, body: bytes, previous: Stored | None) -> None:
        """Write a version at `revision + 1`, which the body must carry already."""
        self._append("MODIFIED" if previous else "ADDED", key, body, previous)

    def remove(self, previous: Stored, body: bytes) -> None:
        """Delete an object; `body` is its last state, carrying `revision + 1`."""
        self._append("DELETED", previous.key, body, previous)

    def _append(self, type_: str, key: Key, body: bytes, previous: Stored | None) -> None:
        with self.transaction():
            assert self._pending is not None  # noqa: S101  (transaction() has just set it)
            revision = self.revision + 1
            self._db.execute(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?)",
                (revision, type_, *key, previous.revision if previous else None, body),
            )
            if type_ == "DELETED":
                self._db.execute(
                    "DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?", key
                )
            else:
                self._db.execute(
                    "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", (*key, revision)
                )
            self.revision = revision
            before = previous.body if previous else None
            self._pending.append(Change(revision, type_, key, body, before))

    def _compact(self) -> None:
        """Drop what was superseded too long ago, a bounded step at a time."""
        target = self.revision - self._history
        if target - self.compacted < min(_SLACK, self._history):
            return
        self.compact(min(target, self.compacted + _COMPACTION_STEP))

    def compact(self, revision: int) -> None:
        """Forget the past before `revision`: reads and watches from earlier raise `Compacted`."""
        if not self.compacted < revision <= self.revision:
            return
        span = {"old": self.compacted, "new": revision}
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(
            "DELETE FROM versions WHERE revision IN (SELECT previous FROM versions"
            " WHERE revision > :old AND revision <= :new AND previous IS NOT NULL)",
            span,
        )
        # The newest row stays even when it is a deletion: it carries the counter over a restart.
        self._db.execute(
            "DELETE FROM versions WHERE type = 'DELETED' AND revision > :old"
            " AND revision <= :new AND revision < (SELECT max(revision) FROM versions)",
            span,
        )
        self._db.execute("UPDATE compaction SET revision = :new", span)
        self._db.execute("COMMIT")
        self.compacted = revision
