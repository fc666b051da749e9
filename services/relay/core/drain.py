"""How a relay asks its holders to move away."""

from __future__ import annotations

SPREAD_PER_MOVE = 0.02
"""Seconds between two moves on average: a move costs each end a dial and a handshake elsewhere."""


def spread(holders: int, circuits: int, deadline: float) -> float:
    """Seconds within which `holders` begin to move, with the `circuits` they have, at random times, so that they do not
    fall on the next relay all at once. At most a third of the time there is: a move begun late must still end before the
    deadline."""
    return min((holders + circuits) * SPREAD_PER_MOVE, deadline / 3)


class Drain:
    """A drain under way. A second, earlier deadline shortens it; a later one does not extend it."""

    __slots__ = ("ends_at",)

    def __init__(self, ends_at: float) -> None:
        self.ends_at = ends_at

    def shorten(self, ends_at: float) -> bool:
        """True when the deadline moved."""
        if ends_at >= self.ends_at:
            return False
        self.ends_at = ends_at
        return True

    def over(self, circuits: int, now: float) -> bool:
        return circuits == 0 or now >= self.ends_at
