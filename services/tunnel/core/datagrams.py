"""Datagrams of a session's flows: now or never, by the quickest way, each at most once.

Between `Carrier`, which knows links, and `Session`, which knows streams: a datagram belongs to a stream, but is
sealed by the link that it goes on, and never sent again.
"""

from collections import deque
from struct import Struct

from services.tunnel.core import events
from services.tunnel.core.absence import Absences
from services.tunnel.core.carrier import Carrier
from services.tunnel.core.events import Event
from services.tunnel.core.inbox import Inbox
from services.tunnel.core.link import BACKLOG_LIMIT
from services.tunnel.core.outbox import Outbox
from services.tunnel.core.packets import DATAGRAM, MAX_PLAIN, ProtocolError
from services.tunnel.core.stream import Stream

LATE_DATAGRAMS = 256
"""Datagrams that wait for a link; then the oldest are dropped."""
DATAGRAM_HEAD = Struct("!II")


class Datagrams(Carrier):
    """See the module."""

    def __init__(self, *, initiator: bool, outbox: Outbox, inbox: Inbox, absences: Absences, now: float) -> None:
        super().__init__(initiator=initiator, outbox=outbox, inbox=inbox, absences=absences, now=now)
        self.bytes_in = self.bytes_out = 0
        """What streams and flows carried."""
        self._late: deque[tuple[Stream, int, bytes]] = deque(maxlen=LATE_DATAGRAMS)

    def flush(self, now: float) -> None:
        """Sends what has gathered of streams."""
        raise NotImplementedError

    def send_datagram(self, stream: Stream, payload: bytes | memoryview) -> None:
        """Sends one datagram now or never: when the link is backed up the oldest that wait are dropped."""
        if len(payload) > MAX_PLAIN - DATAGRAM_HEAD.size:
            return
        if not stream.datagrams_out:
            self.flush(self.now)  # a datagram that overtakes the OPEN of its own flow is lost
        stream.datagrams_out = (stream.datagrams_out + 1) & 0xFFFFFFFF
        self.bytes_out += len(payload)
        self.used_at = self.now
        link = self.second or self.active
        if self._late or link is None or link.backlog > BACKLOG_LIMIT // 2:
            self._late.append((stream, stream.datagrams_out, bytes(payload)))
            self._drain_late()
            return
        self._put_datagram(stream.id, stream.datagrams_out, payload)

    def _put_datagram(self, stream_id: int, counter: int, payload: bytes | memoryview) -> None:
        plain = DATAGRAM_HEAD.pack(stream_id, counter) + payload
        for link in (self.second, self.active):
            if link is not None and link.backlog <= BACKLOG_LIMIT:
                self._seal_on(link, DATAGRAM, plain)

    def _drain_late(self) -> None:
        link = self.second or self.active
        while self._late and link is not None and link.backlog <= BACKLOG_LIMIT // 2:
            stream, counter, payload = self._late.popleft()
            if stream.id in self.streams:
                self._put_datagram(stream.id, counter, payload)

    def _read_datagram(self, plain: memoryview, out: list[Event]) -> None:
        if len(plain) < DATAGRAM_HEAD.size:
            raise ProtocolError("DATAGRAM without its head")
        stream_id, counter = DATAGRAM_HEAD.unpack_from(plain)
        stream = self.streams.get(stream_id)
        if stream is None or not stream.datagram or not stream.admit_datagram(counter):
            return
        self.used_at = self.now
        self.bytes_in += len(plain) - DATAGRAM_HEAD.size
        out.append((events.DATAGRAM, stream, plain[DATAGRAM_HEAD.size :]))
