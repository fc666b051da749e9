"""One circuit in the engine: two legs, and a flow of bytes each way."""

from __future__ import annotations

import socket
from collections.abc import Callable

from .core.fairness import Account
from .pipes import Pipe

USER_TIMEOUT = 30_000
"""Milliseconds for which sent bytes may stay unacknowledged, or a leg's reader may stand still."""
KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""Seconds, seconds, probes: an idle leg whose host is gone is noticed in 30 s."""


class Leg:
    """One connection. `inbound` carries what it sends, `outbound` what it receives. `mask`: what epoll is asked;
    -1: not registered."""

    __slots__ = ("circuit", "fd", "inbound", "mask", "outbound", "peer", "sock")

    inbound: Flow
    outbound: Flow

    def __init__(self, sock: socket.socket, peer: str, circuit: Splice) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.circuit = circuit
        self.mask = -1


class Flow:
    """One direction. Holds a pipe while `held` > 0 bytes are in flight, and only then.

    Reading is wanted unless bytes are held (backpressure: the pipe must be empty before more is read), a rate
    limit pauses the flow, or the source ended. Writing is wanted while bytes are held.
    """

    __slots__ = ("circuit", "done", "held", "moved", "paused", "pipe", "sink", "source")

    def __init__(self, source: Leg, sink: Leg) -> None:
        self.circuit = source.circuit
        self.source = source
        self.sink = sink
        self.pipe: Pipe | None = None
        self.held = 0
        self.moved = 0
        self.paused = False
        self.done = False


class Splice:
    """A circuit whose legs are both there. `touched`: when bytes last moved, on the engine's clock."""

    __slots__ = ("callee", "caller", "ended", "forth", "back", "on_end", "one", "other", "touched")  # noqa: RUF023

    def __init__(
        self,
        caller: tuple[socket.socket, str, Account],
        callee: tuple[socket.socket, str, Account],
        now: float,
        on_end: Callable[[str], None],
    ) -> None:
        self.caller = Leg(caller[0], caller[1], self)
        self.callee = Leg(callee[0], callee[1], self)
        self.one = caller[2]
        self.other = callee[2]
        self.forth = Flow(self.caller, self.callee)
        self.back = Flow(self.callee, self.caller)
        self.caller.inbound = self.callee.outbound = self.forth
        self.callee.inbound = self.caller.outbound = self.back
        self.touched = now
        self.ended = False
        self.on_end = on_end


NOT_SENT = 256 * 1024
"""Bytes the kernel takes beyond what TCP has in flight: more would only wait here, and be lost with the relay."""


def prepare(sock: socket.socket) -> None:
    """Options of a leg."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
