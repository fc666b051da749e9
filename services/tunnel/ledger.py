"""What streams carried, how soon, and why they failed: by service and by kind of path.

On the way of the bytes nothing is counted but what the streams count for their credit; the ledger reads that when a stream
ends, and every few seconds while it is open. What was carried since the last look is put down for the path of now.
"""

from collections.abc import Iterable

from services.tunnel import metrics
from services.tunnel.core.frames import Reason
from services.tunnel.core.link import PATH_NAMES
from services.tunnel.errors import REASON_NAMES
from services.tunnel.flowio import FlowIO
from services.tunnel.streamio import StreamIO

MAX_SERVICES = 1000
"""Names of services that get figures of their own. They come from this node's proxy, never from a peer, but also from
whatever else on this node attaches a socket."""
OTHER = "other"
NO_PATH = "none"
RESET = "reset"
"""Reason of what ended after it had been accepted: either side, or the session's end."""

IO = StreamIO | FlowIO


class Ledger:
    """One for the node."""

    def __init__(self) -> None:
        self._services: set[str] = set()

    def name(self, service: str) -> str:
        """The service as it is named in metrics."""
        if service not in self._services:
            if len(self._services) >= MAX_SERVICES:
                return OTHER
            self._services.add(service)
        return service

    def look(self, ios: Iterable[IO]) -> None:
        """Puts down what these streams have carried since the last look."""
        carried = metrics.BYTES.counts
        for io in ios:
            sent, received = io.carried()
            before_sent, before_received = io.counted
            if sent == before_sent and received == before_received:
                continue
            io.counted = sent, received
            service, path = io.service, path_of(io)
            carried["out", service, path] += sent - before_sent
            carried["in", service, path] += received - before_received

    def first_byte(self, io: IO, seconds: float) -> None:
        """The first byte for a client of this node has come, so long after it asked."""
        metrics.FIRST_BYTE.observe((io.service, path_of(io)), seconds)

    def refused(self, service: str, path: str, reason: Reason) -> None:
        """A client of this node gets no stream."""
        metrics.ERRORS.labels(self.name(service), path, REASON_NAMES.get(reason.code, OTHER)).inc()

    def broken(self, io: IO) -> None:
        """A stream ended otherwise than in order, after it had been accepted."""
        metrics.ERRORS.labels(io.service, path_of(io), RESET).inc()


def path_of(io: IO) -> str:
    """Kind of the path in use now."""
    active = io.pairing.session.active
    return PATH_NAMES[active.kind] if active is not None else NO_PATH
