"""Values that live for a while, in bounded memory."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")

MAX_ENTRIES = 10_000
MAX_BYTES = 8 << 20


class Found(NamedTuple, Generic[V]):
    """A value, and for how long (s) it has been here and will yet be good."""

    value: V
    age: float
    left: float


class _Entry(NamedTuple, Generic[V]):
    value: V
    size: int
    since: float
    until: float


class TtlCache(Generic[V]):
    """By key. What was not asked for longest gives way; `now` in seconds, of a clock that does not jump."""

    def __init__(self, entries: int = MAX_ENTRIES, size: int = MAX_BYTES) -> None:
        """Bounds: how many, and how many bytes in all."""
        self._entries = entries
        self._bytes = size
        self._kept: OrderedDict[Hashable, _Entry[V]] = OrderedDict()
        self.size = 0  # bytes kept now

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: Hashable, value: V, size: int, ttl: float, now: float) -> None:
        """`value`, of `size` bytes, is good for `ttl` seconds; 0: not worth keeping."""
        self._drop(key)
        if ttl <= 0 or size > self._bytes:
            return
        self._kept[key] = _Entry(value, size, now, now + ttl)
        self.size += size
        while len(self._kept) > self._entries or self.size > self._bytes:
            self._drop(next(iter(self._kept)))

    def get(self, key: Hashable, now: float) -> Found[V] | None:
        """What is still good."""
        entry = self._kept.get(key)
        if entry is None:
            return None
        if now >= entry.until:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return Found(entry.value, now - entry.since, entry.until - now)

    def clear(self) -> None:
        self._kept.clear()
        self.size = 0

    def _drop(self, key: Hashable) -> None:
        entry = self._kept.pop(key, None)
        if entry is not None:
            self.size -= entry.size
