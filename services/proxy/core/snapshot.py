"""What a source knows now, told as a snapshot and then as changes."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Snapshot(Generic[T]):
    """Values by the key that `key` finds in them. A new snapshot replaces the old one only when it is complete, so a
    source that restarts never makes anything vanish for a moment."""

    def __init__(self, key: Callable[[T], str]) -> None:
        self._key = key
        self._values: dict[str, T] = {}
        self._seen: set[str] | None = None  # keys of the snapshot being read; None between snapshots
        self.synced = False  # one snapshot was complete, ever

    def __iter__(self) -> Iterator[T]:
        return iter(self._values.values())

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> T | None:
        return self._values.get(key)

    def begin(self) -> None:
        """A snapshot from the beginning starts."""
        self._seen = set()

    def put(self, value: T) -> bool:
        """Adds or replaces; True when anything changed."""
        key = self._key(value)
        if self._seen is not None:
            self._seen.add(key)
        if self._values.get(key) == value:
            return False
        self._values[key] = value
        return True

    def remove(self, key: str) -> bool:
        if self._seen is not None:
            self._seen.discard(key)
        return self._values.pop(key, None) is not None

    def complete(self) -> bool:
        """The snapshot is complete: what it did not name is gone. True when anything changed."""
        seen, self._seen, self.synced = self._seen, None, True
        gone = [] if seen is None else [key for key in self._values if key not in seen]
        for key in gone:
            del self._values[key]
        return bool(gone)
