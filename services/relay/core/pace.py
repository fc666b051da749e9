"""When other nodes are asked to dial again."""

from __future__ import annotations

import random

FIRST = 2.0
"""Seconds until the next round while nothing is decided, or something contradicts; doubled with every such round."""


class Pace:
    """`interval`: seconds between two rounds when all is said (AutoNATv2: an hour)."""

    def __init__(self, interval: float, rng: random.Random) -> None:
        self._interval = interval
        self._rng = rng
        self._hurry = FIRST

    def hurry(self) -> None:
        """Something is new: begin with short pauses."""
        self._hurry = FIRST

    def pause(self, settled: bool) -> float:
        """Seconds until the next round. Nodes that started together do not come back together."""
        if settled:
            self._hurry = FIRST
            return self._interval * self._rng.uniform(0.9, 1.1)
        pause = min(self._hurry, self._interval)
        self._hurry = min(2 * self._hurry, self._interval)
        return pause
