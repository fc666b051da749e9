"""Token buckets."""

from __future__ import annotations


class TokenBucket:
    """`rate` units a second, at most `burst` saved up.

    A taker may run into debt by one taking: who moves bytes learns only afterwards how many there were, and small
    takings near zero would cost more than they spread.
    """

    __slots__ = ("_at", "_level", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._level = burst
        self._at = now

    def level(self, now: float) -> float:
        """Units that may be taken now; negative: debt."""
        if now > self._at:
            self._level = min(self.burst, self._level + (now - self._at) * self.rate)
            self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, into debt if need be."""
        self._level = self.level(now) - amount

    def wait(self, now: float, need: float = 1.0) -> float:
        """Seconds until `need` units (at most the burst) are there; 0: they are."""
        missing = min(need, self.burst) - self.level(now)
        return missing / self.rate if missing > 0 else 0.0
