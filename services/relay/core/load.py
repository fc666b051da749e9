"""How full a relay is."""

from __future__ import annotations

from collections.abc import Iterable


def permille(uses: Iterable[tuple[float, float]]) -> int:
    """Share of the tightest limit in use, 0 to 1000, from pairs (used, limit); a limit of 0 is none."""
    return max((min(1000, int(1000 * used / limit)) for used, limit in uses if limit > 0), default=0)


class BusyShare:
    """Share of one core spent, from a running total of busy seconds; smoothed over about `span` seconds."""

    def __init__(self, now: float, span: float = 10.0) -> None:
        self._span = span
        self._at = now
        self._busy = 0.0
        self.share = 0.0

    def update(self, busy: float, now: float) -> float:
        """Total busy seconds at `now` → share, 0 to 1. Readings closer than 0.5 s keep the last value."""
        elapsed = now - self._at
        if elapsed >= 0.5:
            recent = min(1.0, (busy - self._busy) / elapsed)
            weight = min(1.0, elapsed / self._span)
            self.share += (recent - self.share) * weight
            self._at, self._busy = now, busy
        return self.share
