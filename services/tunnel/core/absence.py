"""When this process did not run although something was due: what fell silent then need not be the path."""

from collections import deque

LATE = 0.05
"""Seconds by which a turn must be late to count: less is what other work of this process takes, and far less than the
quickest suspicion (core/link.SUSPECT_FLOOR)."""
KEPT = 32
"""Absences remembered: none that counts is shorter than LATE, and no link looks back for more than 1.5 s."""


class Absences:
    """On a starved host nine of ten links that are suspected have answered in time, and the answer lies in our own
    socket; moving all sessions to their standbys at once then starves it more."""

    def __init__(self) -> None:
        self._gaps: deque[tuple[float, float]] = deque(maxlen=KEPT)

    def note(self, due: float, now: float) -> None:
        """A turn began now that was due then."""
        if now - due >= LATE:
            self._gaps.append((due, now))

    def within(self, since: float, now: float) -> float:
        """Seconds of absence in that time."""
        total = 0.0
        for began, ended in reversed(self._gaps):
            if ended <= since:
                break
            total += min(ended, now) - max(began, since)
        return total
