"""Clients' sockets that were handed over, until there is a session with the node they want to reach."""

import asyncio
import socket
import time

from services.runtime import sockets, telemetry
from services.tunnel.attach import Connection
from services.tunnel.config import MAX_WAITING, OPEN_TIMEOUT
from services.tunnel.core.frames import Opening, Reason
from services.tunnel.errors import LIMIT, Refused
from services.tunnel.sessions import Sessions
from services.tunnel.streams import Streams
from services.tunnel.wire import OpenRequest

FIRST_CONTACT = 2.0
"""Seconds that a stream waits at least where there is no session with the node yet: to make one over a relay takes up to
eight round trips. Who has others to ask is in a hurry with a node that was there and is silent, not with one that is far."""


class Opener:
    """See the module."""

    def __init__(self, sessions: Sessions, streams: Streams) -> None:
        self._sessions = sessions
        self._streams = streams
        self._waiting: set[asyncio.Task[None]] = set()

    def open(self, request: OpenRequest, sock: socket.socket, connection: Connection) -> None:
        """The client becomes a stream: at once, or when there is a session."""
        request.asked = time.monotonic()
        span = telemetry.start_span("tunnel.open", parent=request.opening.traceparent, peer=request.node)
        if span.traceparent != request.opening.traceparent:
            old = request.opening
            request.opening = Opening(old.network, old.address, old.service, span.traceparent, old.client)
        pairing = self._sessions.preferred.get(request.node)
        if pairing is not None and pairing.session.active is not None:
            self._streams.begin(pairing, request, sock, connection, span)
            return
        if len(self._waiting) >= MAX_WAITING:
            reason = Reason(LIMIT, f"{MAX_WAITING} streams wait for a session already")
            self._streams.refuse(request, sock, connection, span, reason)
            return
        task = asyncio.create_task(self._open_later(request, sock, connection, span))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _open_later(
        self, request: OpenRequest, sock: socket.socket, connection: Connection, span: telemetry.Span
    ) -> None:
        timeout = request.timeout or OPEN_TIMEOUT
        if request.node not in self._sessions.preferred:
            timeout = max(timeout, FIRST_CONTACT)
        try:
            pairing = await self._sessions.session_with(request.node, timeout, span.traceparent)
        except Refused as error:
            self._streams.refuse(request, sock, connection, span, error.reason)
        except BaseException:
            sockets.reset(sock)
            raise
        else:
            self._streams.begin(pairing, request, sock, connection, span)

    async def close(self) -> None:
        """Who waits is reset."""
        waiting = list(self._waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
