"""One revisioned map that any number of readers follow, each at its own pace.

A log of changes would have to be bounded by dropping what slow readers still need. Here nothing is queued:
the map remembers, for each key, the revision of its *last* change, ordered by revision. A reader is just a
revision; what it has missed is the tail of that order, so a reader that falls behind costs no memory and gets
every key once, at its newest value. Only removals need remembering; the oldest are forgotten when there are
too many, and a reader that has not seen a forgotten removal is told so and starts over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from .errors import RevisionCompacted

V = TypeVar("V")

# Removals remembered for readers that resume: at most, and how many whatever is left. In between, no more than there are
# keys: who missed more starts over, which costs it no more than they would.
MAX_TOMBSTONES, FEW = 4096, 64


@dataclass(frozen=True, slots=True)
class Change(Generic[V]):
    """The newest state of one key: its value, or None once removed."""

    revision: int
    key: str
    value: V | None


class Store(Generic[V]):
    """A map with revisions.

    `origin` is the revision before the first change. It must differ from run to run, or else a reader that
    resumes after a restart could be told a tail of the wrong history: pass `origin_at(now)`. `on_change` is called
    after every change.

    Invariant: `_changes` is ordered by revision, holds every live key, and every removal after `compacted`.
    """

    def __init__(
        self,
        origin: int = 0,
        *,
        max_tombstones: int = MAX_TOMBSTONES,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.revision = origin
        self.compacted = origin
        self._max_tombstones = max_tombstones
        self._on_change = on_change
        self._changes: OrderedDict[str, Change[V]] = OrderedDict()
        self._tombstones: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._changes) - len(self._tombstones)

    def __iter__(self) -> Iterator[str]:
        return (change.key for change in self._changes.values() if change.value is not None)

    def get(self, key: str) -> V | None:
        """The value of a key, or None."""
        change = self._changes.get(key)
        return change.value if change is not None else None

    def values(self) -> list[V]:
        """All values, least recently changed first."""
        return [change.value for change in self._changes.values() if change.value is not None]

    def put(self, key: str, value: V) -> bool:
        """Set a key; False when it already had an equal value (no revision is spent)."""
        if self.get(key) == value:
            return False
        self._tombstones.pop(key, None)
        self._append(key, value)
        return True

    def remove(self, key: str) -> bool:
        """Remove a key; False when it was not there."""
        if self.get(key) is None:
            return False
        self._append(key, None)
        self._tombstones[key] = self.revision
        while len(self._tombstones) > min(self._max_tombstones, max(FEW, len(self))):
            oldest, self.compacted = self._tombstones.popitem(last=False)
            del self._changes[oldest]
        return True

    def replace(self, values: dict[str, V]) -> int:
        """Make the map equal to `values`; returns how many keys changed."""
        gone = [key for key in self if key not in values]
        return sum(map(self.remove, gone)) + sum(self.put(key, value) for key, value in values.items())

    def snapshot(self) -> list[Change[V]]:
        """All live keys in order of revision. Resume from `revision` as it is now, not from the last entry."""
        return [change for change in self._changes.values() if change.value is not None]

    def since(self, revision: int) -> list[Change[V]]:
        """What happened after `revision`, each key once, in order of revision.

        Raises RevisionCompacted when removals after `revision` were forgotten, or when it is not of this run.
        """
        if not self.compacted <= revision <= self.revision:
            raise RevisionCompacted(
                f"revision {revision} cannot be resumed, expected {self.compacted} to {self.revision}: watch again from 0"
            )
        missed: list[Change[V]] = []
        for change in reversed(self._changes.values()):
            if change.revision <= revision:
                break
            missed.append(change)
        missed.reverse()
        return missed

    def _append(self, key: str, value: V | None) -> None:
        self.revision += 1
        self._changes[key] = Change(self.revision, key, value)
        self._changes.move_to_end(key)
        self._on_change()


def origin_at(now: float) -> int:
    """Origin for a run that starts at `now`: beyond what an earlier run can have reached (2^20 changes a millisecond)."""
    return int(now * 1000) << 20
