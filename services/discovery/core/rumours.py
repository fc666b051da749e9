"""Relays that others tell of: a few at a time, all of them in turns.

A large mesh has more relays than a node can watch, and which of them is near shows only when it has been measured. So
each is kept for a TURN, and makes room then for another of which others tell; those that this node uses stay. The
nearest of all has its turn sooner or later, gets a reservation, and is one of those that stay.
"""

from __future__ import annotations

from collections.abc import Iterable

from .errors import TableFull
from .model import Record, Signed
from .records import RecordStore

# Relays kept: with what the registry has of them 2.5 KiB each.
MAX_RELAYS = 8
# Seconds that one stays at least: the tunnel measures all relays every 300 (as Tailscale's netcheck does).
TURN = 600.0


class Rumours(RecordStore):
    """By key. `left`: names of those that had their turn, for whoever follows them to take out."""

    def __init__(self, own: int, *, capacity: int = MAX_RELAYS) -> None:
        super().__init__(own, capacity=capacity)
        self.left: list[str] = []
        # When each was heard of first, and its name.
        self._met: dict[int, tuple[float, str]] = {}
        self._used: frozenset[int] = frozenset()

    def use(self, keys: Iterable[int]) -> None:
        """The relays with these keys are this node's choice: they stay."""
        self._used = frozenset(keys)

    def put(self, key: int, record: Record, signed: Signed, now: float) -> bool:
        """As any store; a new version does not begin a new turn. TableFull while nobody has had its turn."""
        self._met = {it: met for it, met in self._met.items() if it in self._held}
        self._met.setdefault(key, (now, record.node_name))
        return super().put(key, record, signed, now)

    def _make_room(self, key: int, size: int, now: float) -> None:
        if not self._full(size):
            return
        self.expire(now)
        while self._full(size):
            others = [it for it in self._held if it not in self._used]
            eldest = min(others, key=lambda it: self._met[it][0], default=None)
            if eldest is None or (self._met[eldest][0] + TURN > now and key not in self._used):
                raise TableFull(f"{len(self._held)} relays are followed; there is no room for another for some minutes")
            self.discard(eldest)
            self.left.append(self._met[eldest][1])
