"""One stream of a session: its credit in both directions and how far it is closed."""

from typing import Any

INITIAL_WINDOW = 256 * 1024
"""Bytes a sender may have outstanding before the first grant, and what a reader that stops may always cost in memory.
A thousand such readers cost 250 MiB; with 4 MiB, as first designed, they cost 4.7 GiB (measured). A quick reader's
window reaches 4 MiB in its second round trip."""
MAX_WINDOW = 16 * 1024 * 1024
"""A window never grows beyond this, bytes: 400 MB/s at 40 ms."""
SLOW_RTTS = 4
"""A window of which one quarter lasts this many round trips is far too large, and is halved."""


class Stream:
    """State of one stream; ids are odd when the session's initiator opened it."""

    __slots__ = (
        "accepted",
        "consumed",
        "datagram",
        "datagram_newest",
        "datagrams_out",
        "datagrams_seen",
        "fin_received",
        "fin_sent",
        "granted",
        "id",
        "local",
        "owner",
        "received",
        "send_limit",
        "sent",
        "window",
        "window_since",
    )

    def __init__(self, stream_id: int, *, local: bool, datagram: bool) -> None:
        self.id = stream_id
        self.local = local
        """Opened by this side."""
        self.datagram = datagram
        self.owner: Any = None
        """Whatever the shell keeps for it."""
        self.accepted = False
        self.sent = 0
        self.send_limit = INITIAL_WINDOW
        self.received = 0
        self.consumed = 0
        """Bytes the local application has taken."""
        self.granted = INITIAL_WINDOW
        self.window = INITIAL_WINDOW
        self.window_since = 0.0
        self.fin_sent = False
        self.fin_received = False
        self.datagrams_out = 0
        self.datagram_newest = 0
        self.datagrams_seen = 0
        """Bit n: datagram `datagram_newest` - n has come."""

    @property
    def credit(self) -> int:
        """Bytes that may be sent now."""
        return self.send_limit - self.sent

    @property
    def finished(self) -> bool:
        return self.fin_sent and self.fin_received

    def grant(self, now: float, rtt: float, room: int) -> int | None:
        """New limit to tell the peer, once a quarter of the window has been consumed since the last one.

        The window doubles when that quarter went within half a round trip, for then it, and not the reader, is the
        bound; but by at most `room` bytes, which is what memory is left for all streams of the node.
        """
        if self.granted - self.consumed > self.window - self.window // 4:
            return None
        took = now - self.window_since
        if took < rtt / 2:
            if self.window < MAX_WINDOW and self.window <= room:
                self.window *= 2
        elif took > SLOW_RTTS * rtt and self.window > INITIAL_WINDOW:
            self.window //= 2
        self.window_since = now
        self.granted = max(self.granted, self.consumed + self.window)
        return self.granted

    def admit_datagram(self, counter: int) -> bool:
        """True for a datagram that has not come before; those 64 or more behind the newest are late and dropped."""
        ahead = ((counter - self.datagram_newest + 0x80000000) & 0xFFFFFFFF) - 0x80000000  # counters wrap
        if ahead > 0:
            self.datagrams_seen = ((self.datagrams_seen << min(ahead, 64)) | 1) & 0xFFFFFFFFFFFFFFFF
            self.datagram_newest = counter
            return True
        bit = 1 << -ahead
        if ahead <= -64 or self.datagrams_seen & bit:
            return False
        self.datagrams_seen |= bit
        return True
