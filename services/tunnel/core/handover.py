"""A link whose TCP is cold takes over: it gets no more than it can take, and the former one, if it lives, carries the rest.

A new or idle connection begins with 10 segments and doubles each round trip (RFC 6928, RFC 5681). Bulk that goes over to it at once
comes in bursts, one each round trip, until its window has grown: longer silences than either path has by itself. And what the
kernel has taken is in front of every datagram and ping; so where the former link is lost the rest waits here.
Rejected: copies on both paths, which are twice the work just when there is much (measured: longer silences than without).
"""

from services.tunnel.core.link import LOADED, SMALL_RECORD, Link

FIRST = SMALL_RECORD + 64
"""Bytes of the first flight: one record."""
LASTS_RTTS = 10
LASTS = (1.0, 3.0)
"""A handover is over after 10 round trips of the new path (12 KiB have become 12 MiB), within these bounds, seconds."""
AT_HAND = 2 * 10 * 1448
"""Bytes of the first flight and, while that is on its way, of the next one: where no other link carries the rest TCP must not wait
for us (requests under bulk: 150 ms after the loss of a relay with half of it, 100 with this, 96 without a bound; a datagram
in their midst 28, 48, 92)."""
FAR = 0.01
"""Round trip, seconds, below which a lost link needs no handover: a cold TCP is warm before anybody notices."""


class Handover:
    """From `old`, None if it is lost, to `new`. The new link may have as much on its way as a window that grows as TCP's own
    does: by what was heard, and at least doubling each round trip, should the word of that be late."""

    __slots__ = ("_since", "_window", "new", "old", "retires")

    def __init__(self, old: Link | None, new: Link, now: float) -> None:
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

    def carrier(self, size: int, now: float) -> Link | None:
        """Which of both gets the next record, of so many bytes; None: it waits."""
        new, old = self.new, self.old
        window = self._window
        if old is None:
            window = max(window, int(AT_HAND * 2 ** min((now - self._since) / max(self.new.rtt, FAR), LASTS_RTTS)))
        if new.unheard + size <= window and new.backlog < LOADED:
            return new
        return old if old is None or old.usable else new

    def over(self, now: float) -> bool:
        """The new link is on its own from now on."""
        shortest = LASTS[0] if self.old is not None else 0.0
        lasts = min(max(LASTS_RTTS * self.new.rtt, shortest), LASTS[1])
        return now - self._since >= lasts or (self.old is not None and not self.old.usable)
