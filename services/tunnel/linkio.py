"""A link's socket: packets in, packets out."""

import contextlib
import logging
import random
import socket
import time
from typing import TYPE_CHECKING

from services.runtime import sockets
from services.tunnel.core.link import NOT_SENT, PUNCHED, Link
from services.tunnel.core.packets import HEADER, HEADER_SIZE, MAX_BODY, CorruptLink, ProtocolError
from services.tunnel.engine import IN, OUT, Engine

if TYPE_CHECKING:
    from services.tunnel.pairing import Pairing

log = logging.getLogger("causeway.tunnel")

GATHER = 16
"""Packets given to the kernel in one call."""
USER_TIMEOUT_MS = 15_000
"""TCP_USER_TIMEOUT: the last line of defence, far above our own suspicion (1.5 s at most)."""


def tune(sock: socket.socket) -> None:
    """Options of every link: no Nagle, keepalive 5/2/3 (notices a vanished idle peer in ~10 s), a user timeout."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def ends(sock: socket.socket) -> tuple[str, str]:
    """IP addresses of a connection, here and there; empty where it has none (any more). IPv4 inside IPv6 as IPv4."""
    try:
        names = (sock.getsockname()[0], sock.getpeername()[0])
    except (OSError, IndexError):
        return "", ""
    here, there = (str(name).partition("%")[0].removeprefix("::ffff:") for name in names)
    return here, there


class LinkIO:
    """Owns one socket; `pump` sends what the session queued, epoll brings what the peer sent."""

    def __init__(self, engine: Engine, pairing: "Pairing", link: Link, sock: socket.socket) -> None:
        self.link = link
        self.sock = sock
        self._engine = engine
        self._pairing = pairing
        self._buffer: bytearray | None = None
        """Kept only while it holds part of a packet: idle links cost no buffer."""
        self._filled = 0
        self._offset = 0
        """Bytes of the queue's first packet that the kernel has already."""
        self._at_hand = NOT_SENT
        self._mask = IN
        self._descriptor = sock.fileno()
        self.local, self.far = ends(sock)
        self.phase = random.random()
        """Its own share of the time by which it may be replaced early, see core/lifetime.py."""
        link.owner = self
        engine.add(self._descriptor, IN, self._ready, self._break)

    def came_to(self, port: int) -> bool:
        """This end is that local port: of the listen port, that the other side dialled."""
        try:
            return bool(self.sock.getsockname()[1] == port)
        except OSError:
            return True

    def close(self, *, reset: bool = False) -> None:
        """Gives the socket up. `reset`: the far end shall know at once that this was no orderly end."""
        self._engine.remove(self._descriptor)
        with contextlib.suppress(OSError):
            # A reset makes NATs on the way refuse the two ports for 10 s (measured with Linux' conntrack): no new punch.
            if reset and self.link.kind != PUNCHED:
                sockets.reset_on_close(self.sock)
            self.sock.close()

    def _break(self) -> None:
        self._pairing.lose(self, "an internal error, see the log")

    def pump(self) -> None:
        """Sends as much of the queue as the kernel takes."""
        queue = self.link.queue
        sock = self.sock
        session = self._pairing.session
        at_hand = session.at_hand(self.link)
        total = 0
        failure: OSError | None = None
        try:
            if at_hand != self._at_hand:
                self._at_hand = at_hand
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, at_hand)
            while queue:
                if self._offset or len(queue) == 1:
                    view = queue[0][0]
                    size = sock.send(view[self._offset :] if self._offset else view)
                else:
                    size = sock.sendmsg([queue[index][0] for index in range(min(len(queue), GATHER))])
                total += size
                size += self._offset
                while queue and size >= len(queue[0][0]):
                    view, record = queue.popleft()
                    size -= len(view)
                    if record is not None:
                        record.queued -= 1
                        if record.acked:
                            session.outbox.forget(record)
                self._offset = size
        except BlockingIOError:
            pass
        except OSError as error:
            failure = error
        events = session.sent(self.link, total) if total else ()
        mask = IN | OUT if queue else IN
        if mask != self._mask and failure is None:
            self._mask = mask
            self._engine.change(self._descriptor, mask)
        if events:
            self._pairing.apply(events)
        if failure is not None:
            self._pairing.lose(self, failure.strerror or str(failure))

    def _ready(self, mask: int) -> None:
        if mask & ~OUT:
            self._receive()
        if mask & OUT and self.sock.fileno() >= 0:
            self.pump()

    def _receive(self) -> None:
        buffer = self._buffer
        if buffer is None:
            buffer = self._engine.take_receive_buffer()
        filled = self._filled
        try:
            size = self.sock.recv_into(memoryview(buffer)[filled:] if filled else buffer)
        except BlockingIOError:
            self._keep(buffer, filled)
            return
        except OSError as error:
            self._engine.give_receive_buffer(buffer)
            self._pairing.lose(self, error.strerror or str(error))
            return
        if not size:
            self._engine.give_receive_buffer(buffer)
            self._pairing.lose(self, "closed by the other end")
            return
        self._parse(buffer, filled + size)

    def take(self, head: bytes) -> None:
        """Packets that were read before this object had the socket."""
        self._engine.now = time.monotonic()
        buffer = self._engine.take_receive_buffer()
        buffer[: len(head)] = head
        self._parse(buffer, len(head))

    def _parse(self, buffer: bytearray, filled: int) -> None:
        view = memoryview(buffer)
        at = 0
        pairing = self._pairing
        receive, apply, now, link = pairing.session.receive, pairing.apply, self._engine.now, self.link
        try:
            while filled - at >= HEADER_SIZE:
                length = HEADER.unpack_from(buffer, at)[3]
                if length > MAX_BODY:
                    raise CorruptLink(f"packet of {length} bytes")
                start = at + HEADER_SIZE
                end = start + length
                if end > filled:
                    break
                events = receive(link, view[at:start], view[start:end], now)
                if events:
                    apply(events)
                    if pairing.ended:
                        break
                at = end
        except CorruptLink as error:
            self._engine.give_receive_buffer(buffer)
            self._pairing.lose(self, str(error))
            return
        except ProtocolError as error:
            self._engine.give_receive_buffer(buffer)
            log.error("protocol violated", extra={"peer": pairing.peer, "error": str(error)})
            pairing.end(f"{pairing.peer} violated the protocol: {error}")
            return
        except Exception:  # a fault of ours: what was in the record has been counted, and is lost
            self._engine.give_receive_buffer(buffer)
            log.exception("session broken", extra={"peer": pairing.peer})
            pairing.broke()
            return
        pairing.look()
        if self.sock.fileno() < 0:  # an event closed us
            self._engine.give_receive_buffer(buffer)
            return
        if at and at < filled:
            buffer[: filled - at] = view[at:filled]
        self._keep(buffer, filled - at)

    def _keep(self, buffer: bytearray, filled: int) -> None:
        self._filled = filled
        if filled:
            self._buffer = buffer
        else:
            self._buffer = None
            self._engine.give_receive_buffer(buffer)
