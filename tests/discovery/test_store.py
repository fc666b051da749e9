"""Any reader, however it stops and resumes, ends with the state of the store."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.discovery.core.errors import RevisionCompacted, SlowReader
from services.discovery.core.store import Store, origin_at
from services.discovery.core.watch import Reader

KEYS = "abcdef"


class Follower:
    """A client of a watch, as the components are: applies events, resumes from the last revision, relists."""

    def __init__(self, store: Store[int]) -> None:
        self.store = store
        self.state: dict[str, int] = {}
        self.revision = 0
        self.relists = 0
        self.connect()

    def connect(self) -> None:
        try:
            self.reader = Reader(self.store, self.revision)
        except RevisionCompacted:
            self.relists += 1
            self.revision = 0
            self.reader = Reader(self.store)
        if self.revision == 0:
            self.listed: set[str] = set()

    def read(self, limit: int | None = None) -> None:
        """Apply events; a reader that is cut off after `limit` of them resumes from what it has seen."""
        try:
            events = self.reader.take()
        except SlowReader:
            self.relists += 1
            self.revision = 0
            self.connect()
            events = self.reader.take()
        for event in events[:limit]:
            if event.synced:
                self.state = {key: value for key, value in self.state.items() if key in self.listed}
            elif event.value is None:
                self.state.pop(event.key, None)
            else:
                self.state[event.key] = event.value
                self.listed.add(event.key)
            assert event.revision == 0 or event.revision > self.revision or event.synced
            self.revision = event.revision or self.revision
        if limit is not None and limit < len(events):
            self.connect()


STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(KEYS), st.integers(0, 3)),
    st.tuples(st.just("remove"), st.sampled_from(KEYS)),
    st.tuples(st.just("read"), st.integers(0, 3), st.one_of(st.none(), st.integers(0, 4))),
    st.tuples(st.just("cut"), st.integers(0, 3)),
)


@given(st.lists(STEPS, max_size=120), st.integers(0, 5), st.sampled_from([0, 1, 1 << 61]))
def test_every_reader_ends_with_the_state_of_the_store(
    steps: list[tuple[object, ...]], tombstones: int, origin: int
) -> None:
    store: Store[int] = Store(origin, max_tombstones=tombstones)
    model: dict[str, int] = {}
    followers = [Follower(store) for _ in range(4)]
    for step in steps:
        match step:
            case ("put", str(key), int(value)):
                before = store.revision
                assert store.put(key, value) == (model.get(key) != value)
                assert store.revision == before + (model.get(key) != value)
                model[key] = value
            case ("remove", str(key)):
                assert store.remove(key) == (model.pop(key, None) is not None)
            case ("read", int(who), limit):
                followers[who].read(limit)  # type: ignore[arg-type]
            case ("cut", int(who)):
                followers[who].connect()
    assert {key: store.get(key) for key in store} == model
    assert len(store) == len(model) == len(store.values())
    assert len(store._changes) <= len(model) + tombstones
    for follower in followers:
        follower.read()
        follower.read()
        assert follower.state == model
        assert follower.reader.take() == []


def test_a_snapshot_then_synced_then_changes() -> None:
    store: Store[int] = Store(100)
    store.put("a", 1)
    store.put("b", 2)
    reader = Reader(store)
    assert [(e.key, e.value, e.synced) for e in reader.take()] == [("a", 1, False), ("b", 2, False), ("", None, True)]
    store.put("a", 3)
    store.put("a", 4)
    store.remove("b")
    assert [(e.revision, e.key, e.value) for e in reader.take()] == [(104, "a", 4), (105, "b", None)]


def test_a_forgotten_removal_is_told_as_such() -> None:
    store: Store[int] = Store(max_tombstones=2)
    for key in KEYS:
        store.put(key, 1)
    reader = Reader(store)
    reader.take()
    seen = store.revision
    for key in "abc":
        store.remove(key)
    with pytest.raises(SlowReader, match="watch again from 0"):
        reader.take()
    with pytest.raises(RevisionCompacted, match="watch again from 0"):
        Reader(store, seen)
    assert [e.key for e in Reader(store, seen + 1).take()] == ["b", "c"]


def test_a_revision_of_another_run_is_not_resumed() -> None:
    former: Store[int] = Store(origin_at(1000.0))
    for value in range(50_000):
        former.put("a", value)
    later: Store[int] = Store(origin_at(1000.1))
    later.put("b", 1)
    with pytest.raises(RevisionCompacted):
        Reader(later, former.revision)
    with pytest.raises(RevisionCompacted):  # the clock went back between the runs
        Reader(Store[int](origin_at(900.0)), former.revision)


def test_replace_changes_only_what_differs() -> None:
    store: Store[int] = Store()
    assert store.replace({"a": 1, "b": 2}) == 2
    assert store.replace({"b": 2, "c": 3}) == 2
    assert {key: store.get(key) for key in store} == {"b": 2, "c": 3}
    assert store.replace({"b": 2, "c": 3}) == 0
