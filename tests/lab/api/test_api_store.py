"""The store: versions, snapshots of the past, compaction, transactions, restarts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from podwire.errors import LabError
from podwire.lab.api.store import Change, Compacted, Key, Store

KIND = "pods"


def put(store: Store, name: str, body: bytes, namespace: str = "a") -> None:
    key = Key(KIND, namespace, name)
    store.put(key, body, store.get(key))


def remove(store: Store, name: str, namespace: str = "a") -> None:
    stored = store.get(Key(KIND, namespace, name))
    assert stored is not None
    store.remove(stored, stored.body)


State = dict[tuple[str, str], bytes]


class StoreAgainstModel(RuleBasedStateMachine):
    """Whatever is done, each revision that is still known reads as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(":memory:", history=10**9)
        self.changes: list[Change] = []
        self.store.on_commit = self.changes.extend
        self.now: State = {}
        self.past: dict[int, State] = {self.store.revision: {}}

    def note(self) -> None:
        self.past[self.store.revision] = dict(self.now)

    @rule(namespace=st.sampled_from("ab"), name=st.sampled_from("xyz"), body=st.binary(max_size=3))
    def put(self, namespace: str, name: str, body: bytes) -> None:
        put(self.store, name, body, namespace)
        self.now[namespace, name] = body
        self.note()

    @precondition(lambda self: self.now)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        namespace, name = data.draw(st.sampled_from(sorted(self.now)))
        remove(self.store, name, namespace)
        del self.now[namespace, name]
        self.note()

    @rule(fails=st.booleans())
    def transaction(self, fails: bool) -> None:
        before = self.store.revision
        try:
            with self.store.transaction():
                for name in "xy":
                    put(self.store, name, b"t")
                if fails:
                    raise KeyError
        except KeyError:
            assert self.store.revision == before
            return
        self.now["a", "x"] = b"t"
        self.past[before + 1] = dict(self.now)
        self.now["a", "y"] = b"t"
        self.note()

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        revision = data.draw(st.integers(0, self.store.revision))
        self.store.compact(revision)

    @invariant()
    def all_known_revisions_read_as_they_were(self) -> None:
        for revision, state in self.past.items():
            if revision < self.store.compacted:
                with pytest.raises(Compacted):
                    self.store.scan(KIND, at=revision)
                continue
            for namespace in (None, "a"):
                found = self.store.scan(KIND, namespace, at=revision)
                wanted = {k: v for k, v in state.items() if namespace in (None, k[0])}
                assert [stored.key[1:] for stored in found] == sorted(wanted)
                assert {stored.key[1:]: stored.body for stored in found} == wanted
                assert self.store.count(KIND, namespace, at=revision) == len(wanted)

    @invariant()
    def changes_are_replayed_as_they_were_told(self) -> None:
        if self.changes and self.store.compacted <= self.store.revision:
            told = [c for c in self.changes if c.revision > self.store.compacted]
            assert self.store.changes_after(self.store.compacted, 10**6) == told

    def teardown(self) -> None:
        self.store.close()


TestStoreAgainstModel = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def test_pages(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    for name in "dbac":
        put(store, name, b"", namespace="n")
    put(store, "a", b"", namespace="m")
    first = store.scan(KIND, limit=2)
    assert [stored.key[1:] for stored in first] == [("m", "a"), ("n", "a")]
    rest = store.scan(KIND, after=("n", "a"))
    assert [stored.key.name for stored in rest] == ["b", "c", "d"]


def test_compaction_keeps_up_with_writes_and_keeps_the_living(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", history=20)
    put(store, "old", b"x")
    for index in range(500):
        put(store, "a", str(index).encode())
        if index % 3 == 0:
            put(store, "b", b"")
            remove(store, "b")
    assert store.revision - store.compacted <= 41
    rows = store._db.execute("SELECT count(*) FROM versions").fetchone()[0]
    assert rows <= 45
    assert store.get(Key(KIND, "a", "old")) is not None


def test_revisions_go_on_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    put(store, "a", b"1")
    remove(store, "a")
    store.compact(store.revision)
    revision, compacted = store.revision, store.compacted
    store.close()
    again = Store(tmp_path / "db")
    assert (again.revision, again.compacted) == (revision, compacted)


def test_database_has_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("podwire.lab.api.store._BUSY_S", 0.1)
    store = Store(tmp_path / "db")
    with pytest.raises(LabError, match="is another API server running"):
        Store(tmp_path / "db")
    store.close()
    Store(tmp_path / "db").close()


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to be looked at as one" * 50)
    with pytest.raises(LabError, match="not a lab's database"):
        Store(tmp_path / "text")
