"""What one watcher is told: a snapshot, `synced`, then changes; or, resuming, changes only.

A reader holds a position, never a queue. `take` returns what is to be sent next; when it returns nothing the
reader has caught up, and the driver wakes it at the next change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from .errors import RevisionCompacted, SlowReader
from .store import Store

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Event(Generic[V]):
    """One message: `added` (key and value), `removed` (key), or `synced` (neither)."""

    revision: int
    key: str = ""
    value: V | None = None

    @property
    def synced(self) -> bool:
        """The end of the snapshot."""
        return not self.key


class Reader(Generic[V]):
    """One watch on a store, from the beginning (`resume` 0) or from the last revision seen.

    Raises RevisionCompacted when that revision cannot be resumed.
    """

    def __init__(self, store: Store[V], resume: int = 0) -> None:
        self._store = store
        self._fresh = resume == 0
        self.position = resume
        if not self._fresh:
            store.since(resume)

    def take(self) -> list[Event[V]]:
        """The next events, at most one per key; empty when there is nothing new.

        Events of a snapshot carry the revision *before* it, except `synced`: a reader cut off in the middle
        resumes from nothing it has not been told. Raises SlowReader when it cannot be told any more.
        """
        if self._fresh:
            self._fresh = False
            entries = self._store.snapshot()
            self.position = self._store.revision
            return [Event(0, entry.key, entry.value) for entry in entries] + [Event(self.position)]
        try:
            missed = self._store.since(self.position)
        except RevisionCompacted as error:
            raise SlowReader(
                f"the reader stands at revision {self.position}, removals up to {self._store.compacted} are forgotten: "
                "watch again from 0 and read faster"
            ) from error
        if missed:
            self.position = missed[-1].revision
        return [Event(change.revision, change.key, change.value) for change in missed]
