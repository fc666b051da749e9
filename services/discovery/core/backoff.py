"""How long to wait after a failure."""

from __future__ import annotations

import random


class Backoff:
    """Doubling waits with jitter of ± 25 %, so that many nodes do not come back at the same moment. Seconds."""

    def __init__(self, first: float, limit: float, rng: random.Random) -> None:
        self._first = first
        self._limit = limit
        self._rng = rng
        self._next = first

    def reset(self) -> None:
        """After a success, or when the network changed."""
        self._next = self._first

    def next(self) -> float:
        """The next wait."""
        wait = self._next
        self._next = min(self._limit, wait * 2)
        return wait * self._rng.uniform(0.75, 1.25)
