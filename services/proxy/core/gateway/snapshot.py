"""The objects known now. A new snapshot replaces the old one only when it is complete, as with services."""

from collections.abc import Iterator

from services.proxy.core.gateway.table import Object


class Objects:
    """By "kind/namespace/name"."""

    def __init__(self) -> None:
        self._objects: dict[str, Object] = {}
        self._seen: set[str] | None = None  # keys of the snapshot being read; None between snapshots

    def __iter__(self) -> Iterator[Object]:
        return iter(self._objects.values())

    def begin(self) -> None:
        """A snapshot from the beginning starts."""
        self._seen = set()

    def put(self, one: Object) -> bool:
        """Adds or replaces; True when anything changed."""
        if self._seen is not None:
            self._seen.add(one.key)
        if self._objects.get(one.key) == one:
            return False
        self._objects[one.key] = one
        return True

    def remove(self, key: str) -> bool:
        if self._seen is not None:
            self._seen.discard(key)
        return self._objects.pop(key, None) is not None

    def complete(self) -> bool:
        """What the snapshot did not name is gone. True when anything changed."""
        seen, self._seen = self._seen, None
        gone = [] if seen is None else [key for key in self._objects if key not in seen]
        for key in gone:
            del self._objects[key]
        return bool(gone)
