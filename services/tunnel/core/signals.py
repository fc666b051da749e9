"""What one end tells the other on a link: acknowledgements, pings, goodbyes, each in a packet of that link's own."""

from services.tunnel.core import control
from services.tunnel.core.control import Control
from services.tunnel.core.inbox import Inbox
from services.tunnel.core.link import PING_IDLE, PING_QUICK, Link
from services.tunnel.core.packets import CONTROL, HEADER, HEADER_SIZE, TAG_SIZE


class Signals:
    """The base of `Carrier`: says things, decides nothing."""

    def __init__(self, inbox: Inbox, now: float) -> None:
        self.inbox = inbox
        self.now = now
        self.used_at = now
        """When a stream last sent or received something."""

    def _seal_on(self, link: Link, kind: int, plain: bytes | bytearray) -> None:
        """A packet under the link's own key, into its queue."""
        size = len(plain)
        packet = bytearray(HEADER_SIZE + size + TAG_SIZE)
        view = memoryview(packet)
        HEADER.pack_into(packet, 0, kind, 0, 0, size + TAG_SIZE, link.counter_out)
        link.cipher.seal(link.counter_out, view[:HEADER_SIZE], memoryview(plain), view[HEADER_SIZE:])
        link.counter_out += 1
        link.push_packet(packet)

    def _say(
        self, link: Link, flags: int = 0, *, echo: int = 0, stamp: int = 0, about: int = 0, note: bytes = b""
    ) -> None:
        held = int((self.now - link.heard_at) * 1000)
        message = Control(flags, self.inbox.expected, link.heard_in, max(held, 0), stamp, echo, about, note)
        link.heard_said = link.heard_in
        link.heard_bytes = 0
        self._seal_on(link, CONTROL, message.encode())

    def _ping(self, link: Link, now: float) -> None:
        if link.ping_sent is None:
            link.ping_sent = now
            link.loaded = link.queueing
        recent = now - self.used_at < PING_IDLE
        link.ping_interval = (
            PING_QUICK if recent or link.suspect_since is not None else min(link.ping_interval * 2, PING_IDLE)
        )
        link.next_ping = now + link.ping_interval
        self._say(link, control.PING, stamp=int(now * 1e6) & 0xFFFFFFFF)
