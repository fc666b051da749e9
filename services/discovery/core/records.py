"""Records that a node keeps for others: signed by their subjects, the newest revision only, for minutes.

Bounded in number and in bytes. When it is full, the records nearest to the own id stay, as those are the ones for
which others will ask here; a flood of names therefore pushes out what is not this node's to keep. Signatures are
checked before a record comes here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import Expired, TableFull, TooLarge
from .model import Record, Signed
from .registry import CLOCK_SKEW, lapse_of

# Records kept, and bytes of them in all. In a mesh of 10,000 nodes a server is one of the eight nearest for about 16.
MAX_RECORDS, MAX_BYTES = 1024, 2 << 20
# Bytes of one record, as MAX_RECORD in peers.py.
MAX_SIZE = 16 * 1024


@dataclass(frozen=True, slots=True)
class Held:
    """A record, and until when it is believed (seconds since the Unix epoch)."""

    revision: int
    until: float
    signed: Signed


class RecordStore:
    """By key. Insertion order is the order of arrival of the newest revision."""

    def __init__(self, own: int, *, capacity: int = MAX_RECORDS, max_bytes: int = MAX_BYTES) -> None:
        self._own = own
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._held: dict[int, Held] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    def put(self, key: int, record: Record, signed: Signed, now: float) -> bool:
        """Keep a verified record; False when the one at hand is as new or newer.

        Raises TooLarge, Expired (also for one from the future beyond CLOCK_SKEW), and TableFull when all that is
        kept is nearer.
        """
        size = signed.size
        if size > MAX_SIZE:
            raise TooLarge(f"the record has {size} bytes, expected at most {MAX_SIZE}")
        until = lapse_of(record, now)
        if until <= now:
            raise Expired(f"the record of {record.node_name} ended {now - record.expires_at:.0f} s ago")
        if record.issued_at > now + CLOCK_SKEW:
            raise Expired(
                f"the record of {record.node_name} was signed {record.issued_at - now:.0f} s in the future, "
                f"expected at most {CLOCK_SKEW:.0f}: set the clocks of both nodes"
            )
        known = self._held.get(key)
        if known is not None and known.revision >= record.revision and known.until > now:
            return False
        self.discard(key)
        self._expire_eldest(now)
        try:
            self._make_room(key, size, now)
        except TableFull:
            # The new version is larger than the old one.
            if known is not None:
                self._keep(key, known)
            raise
        self._keep(key, Held(record.revision, until, signed))
        return True

    def get(self, key: int, now: float) -> Held | None:
        """The newest record under a key, if it still holds."""
        held = self._held.get(key)
        return held if held is not None and held.until > now else None

    def discard(self, key: int) -> None:
        """Forget it."""
        held = self._held.pop(key, None)
        if held is not None:
            self.bytes -= held.signed.size

    def expire(self, now: float) -> None:
        """Drop what no longer holds."""
        for key in [key for key, held in self._held.items() if held.until <= now]:
            self.discard(key)

    def _expire_eldest(self, now: float) -> None:
        """Drop those of the oldest that no longer hold; most records live equally long, `expire` finds the others."""
        while self._held and next(iter(self._held.values())).until <= now:
            self.discard(next(iter(self._held)))

    def sample(self, count: int, now: float, rng: random.Random) -> list[Held]:
        """Some that hold: half of them the newest to arrive, since news has to travel, the others by chance."""
        live = [held for held in self._held.values() if held.until > now]
        newest = live[len(live) - min(len(live), (count + 1) // 2) :]
        others = live[: len(live) - len(newest)]
        return newest + rng.sample(others, min(len(others), count - len(newest)))

    def _keep(self, key: int, held: Held) -> None:
        self._held[key] = held
        self.bytes += held.signed.size

    def _make_room(self, key: int, size: int, now: float) -> None:
        if not self._full(size):
            return
        self.expire(now)
        while self._full(size):
            farthest = max(self._held, key=self._own.__xor__, default=key)
            if farthest ^ self._own <= key ^ self._own:
                raise TableFull(f"{len(self._held)} records are kept, all of them nearer; no room for another")
            self.discard(farthest)

    def _full(self, size: int) -> bool:
        return len(self._held) >= self._capacity or self.bytes + size > self._max_bytes
