"""The SQLite file that a node's attachments and addresses are kept in: opened, written, refused.

What lives here: the tables, transactions, the versions of the schema, what is owed to a full disk,
and what SQLite's errors mean to a person. What does not: what a row means (`store`, `record`).

WAL with `synchronous=NORMAL` loses nothing when the process dies; a power cut may lose the last
moments, and takes every network namespace with it. The database is locked exclusively, so a second
agent on it is refused rather than handing out the same addresses.

A damaged database is refused, never replaced by an empty one: what it knows and the kernel does not
would be lost. A person decides (the error says how).
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from podwire.errors import IpamError, UnwritableError
from podwire.log import fields

log = logging.getLogger(__name__)

#: SQLite's results where the disk is at fault, and not what is on it.
_UNWRITABLE = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
)

#: Stored in the file's `user_version`; a file with a higher one is of a later Podwire.
SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE attachment (
  container_id TEXT NOT NULL,
  ifname TEXT NOT NULL,
  network TEXT NOT NULL,
  netns TEXT NOT NULL,
  host_ifname TEXT NOT NULL,
  mac BLOB NOT NULL,
  mtu INTEGER NOT NULL,
  addresses TEXT NOT NULL,
  pod_namespace TEXT NOT NULL,
  pod_name TEXT NOT NULL,
  pod_uid TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('pending', 'ready', 'deleting')),
  created REAL NOT NULL,
  may_spoof INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (container_id, ifname)
) WITHOUT ROWID;
CREATE TABLE address (
  ip TEXT PRIMARY KEY,
  container_id TEXT,
  ifname TEXT,
  released REAL,
  CHECK ((container_id IS NULL) = (released IS NOT NULL))
) WITHOUT ROWID;
CREATE TABLE pool (subnet TEXT PRIMARY KEY, last TEXT NOT NULL) WITHOUT ROWID;
"""

#: What makes a database of each earlier version one of the next.
_MIGRATIONS = {1: "ALTER TABLE attachment ADD COLUMN may_spoof INTEGER NOT NULL DEFAULT 0"}

#: A statement, and the rows that it is run for.
Statement: TypeAlias = tuple[str, Sequence[Sequence[object]]]


class Database:
    """The open file. All methods run in the thread that made it (sqlite3 enforces that)."""

    def __init__(self, path: Path, *, busy_timeout_s: float) -> None:
        """Open or create it. Raises IpamError when it cannot be used."""
        self.path = path
        self._owed: list[Statement] = []
        #: Why what was given back is not on the disk; None where nothing is owed.
        self.unwritten: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise IpamError(f"{path.parent}: {error.strerror}") from error
        with self.errors():
            self._db = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None)
        try:
            with self.errors():
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        if self._owed:
            with contextlib.suppress(IpamError), self.transaction():
                pass  # A transaction begins with what is owed.
        self._db.close()

    def execute(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """One statement: a question, or within a `transaction` a change."""
        return self._db.execute(sql, values)

    def execute_each(self, *statements: Statement) -> None:
        """Each statement for each of its rows, within a `transaction`."""
        for sql, rows in statements:
            self._db.executemany(sql, rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is executed in it, or nothing. What is owed comes first."""
        with self.errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self.execute_each(*self._owed)
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors (a full disk).
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        self._owed, self.unwritten = [], None

    def give_back(self, *statements: Statement) -> None:
        """Write what only makes room for others: now, or before the next write."""
        try:
            with self.transaction():
                self.execute_each(*statements)
        except UnwritableError as error:
            self._owed += statements
            if self.unwritten is None:
                log.error("written down later", extra=fields(error=error))
            self.unwritten = str(error)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """What SQLite raises within is raised as IpamError, with a remedy."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in _UNWRITABLE:
                raise UnwritableError(
                    f"{self.path}: {error}",
                    remedy=f"make room on the disk of {self.path.parent}, and see that it can be"
                    " written to",
                ) from error
            remedy = None
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                remedy = "stop the other podwire agent that has it open"
            raise IpamError(f"{self.path}: {error}", remedy=remedy) from error
        except sqlite3.DatabaseError as error:
            raise IpamError(
                f"{self.path} is damaged: {error}",
                remedy="move the file aside and start the agent again: it writes down anew what"
                " running pods have",
            ) from error

    def _prepare(self) -> None:
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise IpamError(
                f"{self.path} was written by a later Podwire (schema {version}, this one knows"
                f" {SCHEMA_VERSION})",
                remedy="run the later version on this node",
            )
        # Takes the exclusive lock too, so that a second agent fails here and not at its first ADD.
        with self.transaction():
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
            for older in range(version or SCHEMA_VERSION, SCHEMA_VERSION):
                self._db.execute(_MIGRATIONS[older])
            if version != SCHEMA_VERSION:
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        problem = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(problem)
