"""A link whose TCP is cold takes over: it gets no more than it can take, and the former one, if it lives, carries the rest.

A new or idle connection begins with 10 segments and doubles each round trip (RFC 6928, RFC 5681). Bulk that goes over to it at once
comes in bursts, one each round trip, until its window has grown: longer silences than either path has by itself. And what the
kernel has taken is in front of every datagram and ping; so where the former link is lost the kernel gets little more than TCP has
on its way, and the rest waits here. How fast the window grows only TCP knows: over a relay it has half the path's round trip.
Rejected: copies on both paths, which are twice the work just when there is much (measured: longer silences than without); after
a loss a window of ours that doubles each round trip of the path (bulk at full speed, 40 ms, the relay killed: requests stood still
for 550 ms and up to 1.4 s, now for 290 and 335).
"""

from services.tunnel.core.link import LOADED, SMALL_RECORD, Link

FIRST = SMALL_RECORD + 64
"""Bytes of the first flight: one record."""
LASTS_RTTS = 10
LASTS = (1.0, 3.0)
"""A handover is over after 10 round trips of the new path (12 KiB have become 12 MiB), within these bounds, seconds."""
AT_HAND = 10 * 1448
"""TCP_NOTSENT_LOWAT where no other link carries the rest, bytes: one first flight. The kernel wants more as soon as half of it has
gone, so TCP never waits for us; with twice as much a datagram waits for one flight more."""
FAR = 0.01
"""Round trip, seconds, below which a lost link needs no handover: a cold TCP is warm before anybody notices."""


class Handover:
    """From `old`, None if it is lost, to `new`. Beside an old one the new link may have as much on its way as a window that grows
    as TCP's own does, by what was heard."""

    __slots__ = ("_since", "_window", "new", "old", "retires")

    def __init__(self, old: Link | None, new: Link, now: float) -> None:
        self.old = old
        self.new = new
        self.retires = False
        """The old link is to be left in order when this is over."""
        self._window = FIRST
        new.record_size = SMALL_RECORD  # what is larger does not fit, and would come in as many round trips as bursts
        self._since = now

    @property
    def has_room(self) -> bool:
        """The old link is lost, and the new one can take a part of what waits."""
        return self.old is None and self.new.backlog < SMALL_RECORD

    def heard(self, size: int) -> None:
        """The peer has heard so many bytes on the new link."""
        self._window += size

    def carrier(self, size: int) -> Link | None:
        """Which of both gets the next record, of so many bytes; None: it waits."""
        new, old = self.new, self.old
        if old is None:
            return new if self.has_room else None
        if new.unheard + size <= self._window and new.backlog < LOADED:
            return new
        return old if old.usable else new

    def over(self, now: float) -> bool:
        """The new link is on its own from now on."""
        shortest = LASTS[0] if self.old is not None else 0.0
        lasts = min(max(LASTS_RTTS * self.new.rtt, shortest), LASTS[1])
        return now - self._since >= lasts or (self.old is not None and not self.old.usable)
