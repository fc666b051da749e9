"""Streams from the moment somebody asks for them until the other side has answered, in both directions.

Out: a client's socket was handed over (`begin`), the exit accepts or refuses. In: a peer asks (`opened`), and the
local proxy answers one of the `offers`.
"""

import logging
import socket
import time

from services.runtime import telemetry
from services.tunnel import attach, metrics
from services.tunnel.attach import Caller, Connection
from services.tunnel.config import OPEN_TIMEOUT
from services.tunnel.core.frames import UDP, Opening, Reason
from services.tunnel.errors import LIMIT, NO_PATH
from services.tunnel.offers import Offers
from services.tunnel.pairing import Pairing
from services.tunnel.servicer import OpenRequest
from services.tunnel.streamio import FlowIO, StreamIO

log = logging.getLogger("causeway.tunnel")


class Streams:
    """See the module."""

    def __init__(self, offers: Offers) -> None:
        self.offers = offers
        self.total = 0
        """Streams since the start, both directions."""
        self._opening: dict[StreamIO | FlowIO, float] = {}
        """Streams of ours that the exit has not accepted, with the time at which patience ends."""

    def begin(
        self, pairing: Pairing, request: OpenRequest, sock: socket.socket, connection: Connection, span: telemetry.Span
    ) -> None:
        """The client's socket becomes a stream of this session."""
        opening = request.opening
        try:
            io = pairing.open_stream(opening)
        except (OverflowError, ValueError) as error:
            self.refuse(request, sock, connection, span, Reason(LIMIT, str(error)))
            return
        self.total += 1
        metrics.STREAMS_TOTAL.labels("out", "udp" if opening.network == UDP else "tcp").inc()
        io.caller = Caller(connection, request) if request.number else None
        io.span = span
        self._opening[io] = time.monotonic() + (request.timeout or OPEN_TIMEOUT)
        if isinstance(io, StreamIO):
            if request.head:
                pairing.session.send(io.stream, request.head)
            if request.keep:
                io.early = bytearray(request.head)
            io.welcome = request.welcome
        else:
            io.from_client = True
        for datagram in request.datagrams:
            pairing.session.send_datagram(io.stream, datagram)
        io.attach(sock)

    def refuse(
        self, request: OpenRequest, sock: socket.socket, connection: Connection, span: telemetry.Span, reason: Reason
    ) -> None:
        """The client gets no stream."""
        metrics.REFUSED_TOTAL.labels(str(reason.code)).inc()
        log.info(
            "stream refused", extra={"peer": request.node, "target": request.opening.address, "error": reason.message}
        )
        Caller(connection, request).refused(reason, request.head)
        span.end(reason.message)
        if request.keep:
            sock.close()
        else:
            attach.reset(sock)

    def opened(self, pairing: Pairing, io: StreamIO | FlowIO, opening: Opening) -> None:
        """The peer asks for a stream."""
        self.total += 1
        metrics.STREAMS_TOTAL.labels("in", "udp" if opening.network == UDP else "tcp").inc()
        self.offers.add(pairing, io, opening)

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
        caller, io.caller = io.caller, None
        if reason is not None and reason.code and (caller is None or not caller.accepted):
            metrics.REFUSED_TOTAL.labels(str(reason.code)).inc()
        if caller is not None:
            early = io.early if isinstance(io, StreamIO) else None
            caller.closed(reason, bytes(early or b""))
        if io.span is not None:
            io.span.end(reason.message if reason is not None else "")
            io.span = None

    def expire(self, now: float) -> None:
        """Gives up what nobody answered in time."""
        self.offers.expire(now)
        for io, until in list(self._opening.items()):
            if now > until:
                self._give_up(io, now)

    def _give_up(self, io: StreamIO | FlowIO, now: float) -> None:
        pairing = io.pairing
        if pairing.session.active is not None and not io.stream.datagram:
            self._opening[io] = now + OPEN_TIMEOUT  # the exit is dialling; its proxy has its own limit
            return
        reason = Reason(NO_PATH, f"no path to {pairing.peer}: {pairing.owner.failure(pairing)}")
        self.closed(io, reason)
        pairing.session.reset(io.stream, reason)
        io.close(reset=True)
