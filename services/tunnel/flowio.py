"""A UDP flow's socket: datagrams in and out of the session, each by itself.

The socket was passed in by the proxy and is ours alone. What cannot go on at once is dropped, as a network would.
"""

import socket
from typing import TYPE_CHECKING

from services.runtime import sockets
from services.tunnel.core.frames import Reason
from services.tunnel.core.stream import Stream
from services.tunnel.engine import HANGUP, IN, Engine
from services.tunnel.errors import CONNECTION_REFUSED

if TYPE_CHECKING:
    from services.runtime.telemetry import Span
    from services.tunnel.attach import Caller
    from services.tunnel.pairing import Pairing

DATAGRAM_SIZE = 65_535
FLOW_BACKLOG = 64
"""Datagrams of a flow that wait for its socket; then the oldest are dropped."""
GONE_AFTER = 16
"""Datagrams in a row for which the port was closed, after which who was there is gone for good: else a backend that goes on
sending would keep its client's flow, and a client that of its backend, while others are well."""
ENDED = Reason(0, "the flow ended")
NOBODY = Reason(CONNECTION_REFUSED, "nobody listens at the backend's port")


class FlowIO:
    """One UDP flow: a connected datagram socket. Borders are kept; what comes late is dropped, not queued."""

    __slots__ = (
        "_descriptor",
        "_engine",
        "_heard",
        "_refusals",
        "_waiting",
        "began",
        "bytes_in",
        "bytes_out",
        "caller",
        "counted",
        "eof",
        "finished",
        "from_client",
        "pairing",
        "service",
        "sock",
        "span",
        "stream",
        "used_at",
    )

    def __init__(self, engine: Engine, pairing: "Pairing", stream: Stream) -> None:
        self.stream = stream
        self.sock: socket.socket | None = None
        self.eof = self.finished = False
        self.caller: Caller | None = None
        """Who awaits the outcome of an Attach."""
        self.span: Span | None = None
        self.service = ""
        self.began = 0.0
        self.counted = (0, 0)
        """These three as in StreamIO."""
        self.bytes_out = self.bytes_in = 0
        self.used_at = engine.now
        self.from_client = False
        """The socket is a client's, as opposed to a backend's, which may come back."""
        self._refusals = 0
        self._heard = False
        """The socket's other end has sent something."""
        self._engine = engine
        self.pairing = pairing
        self._descriptor = -1
        self._waiting: list[bytes] = []
        stream.owner = self

    def attach(self, sock: socket.socket) -> None:
        """From now on this is the other end of the flow."""
        sock.setblocking(False)
        self.sock = sock
        self._descriptor = sock.fileno()
        self._engine.add(self._descriptor, IN, self._ready, self._fail)
        for datagram in self._waiting:
            self._write(memoryview(datagram))
        self._waiting.clear()

    def _ready(self, mask: int) -> None:
        sock = self.sock
        for _ in range(16):
            if sock is None or self.sock is None:
                return
            try:
                payload = sock.recv(DATAGRAM_SIZE)
            except BlockingIOError:
                if mask & HANGUP:  # would be announced for ever
                    self._fail()
                    return
                break
            except ConnectionRefusedError:
                self._refused()
                continue
            except OSError:
                self._fail()
                return
            if not payload and sockets.kind(sock) != socket.SOCK_DGRAM:  # the end of a connection, no empty datagram
                self._fail()
                return
            self.used_at = self._engine.now
            self.bytes_out += len(payload)
            self._refusals = 0
            self._heard = True
            self.pairing.session.send_datagram(self.stream, payload)
        self.pairing.mark()

    def deliver(self, view: memoryview) -> None:
        """One datagram from the peer."""
        if self.began:
            self.pairing.openings.first_byte(self)
        self.bytes_in += len(view)
        self.used_at = self._engine.now
        if self.sock is None:
            if len(self._waiting) >= FLOW_BACKLOG:
                del self._waiting[0]
            self._waiting.append(bytes(view))
        else:
            self._write(view)

    def _write(self, view: memoryview) -> None:
        if self.sock is None:
            return
        try:
            self.sock.send(view)
        except ConnectionRefusedError:
            self._refused()
        except OSError:  # a full buffer: UDP may lose
            pass

    def _refused(self) -> None:
        """ICMP port unreachable: nobody listens there now. A client, or a backend that was there, may come back. One that
        never was is said to be dead: the client's next datagram begins a flow, to another one where there is any."""
        self._refusals += 1
        if self._refusals >= GONE_AFTER or not (self.from_client or self._heard):
            self._fail(NOBODY if not self.from_client else ENDED)

    def carried(self) -> tuple[int, int]:
        """Bytes to the peer, and from it, as far as this end knows: some may have been lost."""
        return self.bytes_out, self.bytes_in

    def resume(self) -> None:
        """Flows have no credit."""

    def finish(self) -> None:
        """The peer ended the flow."""
        self.pairing.session.finish(self.stream)
        self.close()

    def expire(self) -> None:
        """Nothing for too long."""
        self._fail()

    def _fail(self, reason: Reason = ENDED) -> None:
        self.pairing.session.reset(self.stream, reason)
        self.pairing.mark()
        self.close()

    def close(self, *, reset: bool = False) -> None:
        """Gives the socket up."""
        sock, self.sock = self.sock, None
        if sock is not None:
            self._engine.remove(self._descriptor)
            sock.close()
        self._waiting.clear()
        if self.stream.owner is self:
            self.stream.owner = None
            self.pairing.closed(self)
