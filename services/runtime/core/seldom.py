"""What happens often is worth one line in the log, and then for a while none."""

from collections import deque
from collections.abc import Hashable


class Seldom:
    """Says which of many events to tell of: the first of each kind in `interval` seconds, and `most` of all kinds, so
    that nobody can fill a log by new kinds."""

    def __init__(self, interval: float, most: int) -> None:
        self._interval = interval
        self._most = most
        self._kinds: set[Hashable] = set()
        self._told: deque[tuple[float, Hashable]] = deque()

    def first(self, kind: Hashable, now: float) -> bool:
        """Whether to tell of this one."""
        while self._told and now - self._told[0][0] >= self._interval:
            self._kinds.discard(self._told.popleft()[1])
        if kind in self._kinds or len(self._kinds) >= self._most:
            return False
        self._kinds.add(kind)
        self._told.append((now, kind))
        return True
