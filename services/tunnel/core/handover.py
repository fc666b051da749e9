"""A better path whose TCP is cold: the former one carries, for a while, what the new one cannot take yet.

A new connection begins with 10 segments and doubles each round trip (RFC 6928, RFC 5681). Bulk that goes over to it at once
comes in bursts, one each round trip, until its window has grown: longer silences than either path has by itself.
Rejected: copies on both paths, which are twice the work just when there is much (measured: longer silences than without).
"""

from services.tunnel.core.link import LOADED, SMALL_RECORD, Link

FIRST = SMALL_RECORD + 64
"""Bytes of the first flight: one record."""
LASTS_RTTS = 10
LASTS = (1.0, 3.0)
"""A handover is over after 10 round trips of the new path (12 KiB have become 12 MiB), within these bounds, seconds."""


class Handover:
    """From `old` to `new`. The new link may have as much on its way as a window that grows as TCP's own does."""

    __slots__ = ("_since", "_window", "new", "old", "retires")

    def __init__(self, old: Link, new: Link, now: float) -> None:
        self.old = old
        self.new = new
        self.retires = False
        """The old link is to be left in order when this is over."""
        self._window = FIRST
        new.record_size = SMALL_RECORD  # what is larger does not fit, and would come in as many round trips as bursts
        self._since = now

    def heard(self, size: int) -> None:
        """The peer has heard so many bytes on the new link."""
        self._window += size

    def carrier(self, size: int) -> Link:
        """Which of both gets the next record, of so many bytes."""
        new = self.new
        fits = new.unheard + size <= self._window and new.backlog < LOADED
        return new if fits or not self.old.usable else self.old

    def over(self, now: float) -> bool:
        """The new link is on its own from now on."""
        lasts = min(max(LASTS_RTTS * self.new.rtt, LASTS[0]), LASTS[1])
        return now - self._since >= lasts or not self.old.usable
