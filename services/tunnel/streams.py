"""Streams from the moment somebody asks for them until the other side has answered, in both directions.

Out: a client's socket was handed over (`begin`), the exit accepts or refuses. In: a peer asks (`opened`), and the
local proxy answers one of the `offers`.
"""

import logging
import socket
import time

from services.runtime import descriptors, sockets, telemetry
from services.tunnel import metrics
from services.tunnel.attach import Caller, Connection
from services.tunnel.config import OPEN_TIMEOUT
from services.tunnel.core.frames import UDP, Opening, Reason
from services.tunnel.errors import LIMIT, NO_PATH
from services.tunnel.flowio import FlowIO
from services.tunnel.ledger import NO_PATH as NO_STREAM
from services.tunnel.ledger import Ledger, path_of
from services.tunnel.offers import Offers
from services.tunnel.pairing import Pairing
from services.tunnel.streamio import StreamIO
from services.tunnel.wire import OpenRequest

FULL = "{} streams are open, and there are hardly any descriptors left (ulimit -n)"

LOOK_AGAIN = 0.1
"""Seconds until a stream whose time for a path is over is looked at again, while its path answers."""

log = logging.getLogger("causeway.tunnel")


class Streams:
    """See the module."""

    def __init__(self, node_name: str) -> None:
        self.ledger = Ledger()
        self.offers = Offers(node_name, self.ledger.name)
        self.total = 0
        """Streams since the start, both directions."""
        self._live: set[StreamIO | FlowIO] = set()
        """Streams that have a descriptor, or will get one."""
        self._room = descriptors.room()
        """As it was at the last look, at most a second ago: asking takes a microsecond."""
        self._opening: dict[StreamIO | FlowIO, float] = {}
        """Streams of ours that the exit has not accepted, with the time at which patience ends."""

    @property
    def full(self) -> bool:
        """One stream more might take the descriptor that something else needs."""
        return len(self._live) >= self._room

    def begin(
        self, pairing: Pairing, request: OpenRequest, sock: socket.socket, connection: Connection, span: telemetry.Span
    ) -> None:
        """The client's socket becomes a stream of this session."""
        opening = request.opening
        if self.full:
            self.refuse(request, sock, connection, span, Reason(LIMIT, FULL.format(len(self._live))))
            return
        try:
            io = pairing.open_stream(opening)
        except (OverflowError, ValueError) as error:
            self.refuse(request, sock, connection, span, Reason(LIMIT, str(error)))
            return
        self.total += 1
        self._live.add(io)
        metrics.STREAMS_TOTAL.counts["out", "udp" if opening.network == UDP else "tcp"] += 1
        io.service = self.ledger.name(opening.service)
        io.began = request.asked
        io.caller = Caller(connection, request) if request.number else None
        io.span = span
        self._opening[io] = time.monotonic() + (request.timeout or OPEN_TIMEOUT)
        if isinstance(io, StreamIO):
            if request.head:
                pairing.session.send(io.stream, request.head)
            if request.keep or request.give_back:
                io.early = bytearray(request.head)
            io.welcome = request.welcome
            io.attach(sock, messages=sock is connection.sock)
            io.read()  # most clients have spoken by now: their first bytes go with the OPEN, in one record
        else:
            io.from_client = True
            for datagram in request.datagrams:
                io.bytes_out += len(datagram)
                pairing.session.send_datagram(io.stream, datagram)
            io.attach(sock)

    def refuse(
        self, request: OpenRequest, sock: socket.socket, connection: Connection, span: telemetry.Span, reason: Reason
    ) -> None:
        """The client gets no stream."""
        self.ledger.refused(request.opening.service, NO_STREAM, reason)
        log.info(
            "stream refused", extra={"peer": request.node, "target": request.opening.address, "error": reason.message}
        )
        given = sock if request.give_back else None
        Caller(connection, request).refused(reason, request.head, given)
        span.end(reason.message)
        if given is not None:
            return
        if request.keep and connection.alive:
            sock.close()
        else:
            sockets.reset(sock)

    def opened(self, pairing: Pairing, io: StreamIO | FlowIO, opening: Opening) -> None:
        """The peer asks for a stream."""
        self.total += 1
        metrics.STREAMS_TOTAL.counts["in", "udp" if opening.network == UDP else "tcp"] += 1
        if self.full:
            pairing.refuse(io, Reason(LIMIT, FULL.format(len(self._live))))
            return
        self._live.add(io)
        self.offers.add(pairing, io, opening)

    def first_byte(self, io: StreamIO | FlowIO) -> None:
        """The exit has sent something."""
        self.ledger.first_byte(io, time.monotonic() - io.began)
        io.began = 0.0
        if isinstance(io, FlowIO) and io.caller is not None:
            io.caller.answered()

    def count(self) -> None:
        """Brings the metrics up to date with the streams that are open."""
        self.ledger.look(self._live)

    def watch(self) -> None:
        """Every few seconds: has the kernel watch those who have come since."""
        for io in self._live:
            if isinstance(io, StreamIO):
                io.watch()

    def accepted(self, io: StreamIO | FlowIO) -> None:
        """The exit has connected the backend."""
        self._opening.pop(io, None)
        if io.caller is not None:
            active = io.pairing.session.active
            if active is None:
                io.caller.accept(0, 0.0)
            else:
                io.caller.accept(active.kind, active.path_rtt.smoothed or 0.0)
        if isinstance(io, StreamIO):
            io.settle()
        if io.span is not None:
            io.span.end()
            io.span = None

    def closed(self, io: StreamIO | FlowIO, reason: Reason | None) -> None:
        """The stream is over; `reason` where the other side says why."""
        self._opening.pop(io, None)
        if io in self._live:
            self._live.discard(io)
            self.ledger.look((io,))
        caller, io.caller = io.caller, None
        if reason is not None:
            if reason.code and not io.stream.accepted:
                self.ledger.refused(io.service, path_of(io), reason)
            elif not io.stream.datagram:  # a flow has no other end
                self.ledger.broken(io)
        if caller is not None:
            self._tell(caller, io, reason)
        if io.span is not None:
            io.span.end(reason.message if reason is not None else "")
            io.span = None

    @staticmethod
    def _tell(caller: Caller, io: StreamIO | FlowIO, reason: Reason | None) -> None:
        if not isinstance(io, StreamIO) or io.early is None:
            caller.closed(reason)
            return
        caller.closed(reason, bytes(io.early), io.release() if caller.request.give_back else None)
        if not caller.connection.alive:
            io.early = None  # nobody has another descriptor: the client is told by a reset

    def expire(self, now: float) -> None:
        """Gives up what nobody answered in time; once a second."""
        self._room = descriptors.room()
        self.offers.expire(now)
        self.expire_openings(now)

    def expire_openings(self, now: float) -> None:
        """Those of this node only."""
        for io, until in list(self._opening.items()):
            if now > until:
                self._give_up(io, now)

    def _give_up(self, io: StreamIO | FlowIO, now: float) -> None:
        pairing = io.pairing
        active = pairing.session.active
        patient = not io.stream.datagram or now - io.began < OPEN_TIMEOUT
        if active is not None and active.suspect_since is None and patient:
            # The exit is dialling; its proxy has its own limit. But a node may also fall silent meanwhile.
            self._opening[io] = now + LOOK_AGAIN
            return
        reason = Reason(NO_PATH, f"no path to {pairing.peer}: {pairing.owner.failure(pairing)}")
        self.closed(io, reason)
        pairing.session.reset(io.stream, reason)
        io.close(reset=True)
