"""The attach socket: where the proxy (or anything else on this node) hands over sockets.

SOCK_SEQPACKET, one message and at most one descriptor each; see Attach in protos/tunnel.proto. It lives in the
engine's epoll, since it is used once per connection.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from services.runtime import sockets
from services.tunnel import wire
from services.tunnel.core.frames import UDP, Reason
from services.tunnel.engine import IN, OUT, Engine
from services.tunnel.errors import DENIED, NO_PATH
from services.tunnel.wire import Answer, OpenRequest

if TYPE_CHECKING:
    from services.tunnel.offers import Listener

log = logging.getLogger("causeway.tunnel")

MESSAGE_SIZE = 64 * 1024
MAX_CONNECTIONS = 1024
"""Connections to the attach socket; one per local component or `causeway nc`, but also streams of their own."""
PAUSE = 0.2
"""Seconds without accepting when descriptors or memory have run out."""
BURST = 32
"""Messages taken from one connection before others get their turn."""
DESCRIPTOR = struct.Struct("i")
ANCILLARY_SIZE = socket.CMSG_SPACE(4 * DESCRIPTOR.size)
"""Bytes for what comes beside a message: a few descriptors, of which the first counts."""
CUT_OFF = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
MAX_RESULTS = 16_384
"""Results that wait for one client; who lets more gather does not read them, and is cut off."""

GONE = Reason(0, "the client went away")
ENDED = Reason(NO_PATH, "the session with the node ended")

OnOpen = Callable[[OpenRequest, socket.socket, "Connection"], None]
OnAnswer = Callable[[Answer, socket.socket | None], None]
OnListen = Callable[["Connection"], None]


class Connection:
    """One client of the attach socket."""

    def __init__(self, owner: "AttachSocket", sock: socket.socket) -> None:
        self.sock = sock
        self._owner = owner
        self._descriptor = sock.fileno()
        self._results: deque[tuple[bytes, socket.socket | None]] = deque()
        self._full = False
        """The other end has to read some before it gets more."""
        self.listener: Listener | None = None
        """What takes offers for it, once it has asked."""
        owner.engine.add(self._descriptor, IN, self._ready, self.close)

    @property
    def alive(self) -> bool:
        """False: nobody hears of results any more."""
        return self.sock.fileno() >= 0

    @property
    def takes_messages(self) -> bool:
        """It has neither ended nor become a stream itself."""
        return self in self._owner.connections

    def answer(self, result: bytes, given: socket.socket | None = None) -> None:
        """Sends an encoded AttachResult: now, or as soon as the other end has read some. `given`: goes with it."""
        if not self.alive:
            if given is not None:
                sockets.reset(given)
            return
        self._results.append((result, given))
        if len(self._results) == 1:
            self._send()
        elif len(self._results) > MAX_RESULTS and self.takes_messages:
            log.warning("a client of the attach socket does not read its results")
            self.close()

    def _send(self) -> None:
        while self._results:
            result, given = self._results[0]
            try:
                if given is None:
                    self.sock.send(result)
                else:
                    socket.send_fds(self.sock, [result], [given.fileno()])
                    given.close()
            except BlockingIOError:
                if not self._full and self.takes_messages:
                    self._full = True
                    self._owner.engine.change(self._descriptor, IN | OUT)
                return
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS and given is not None:  # too many descriptors on their way
                    sockets.reset(given)
                    self._results[0] = result, None
                    continue
                self._forget()  # the client is gone; its results are nobody's
                return
            self._results.popleft()
        if self._full and self.takes_messages:
            self._full = False
            self._owner.engine.change(self._descriptor, IN)

    def close(self) -> None:
        self._leave()
        self.sock.close()

    def _forget(self) -> None:
        for _, given in self._results:
            if given is not None:
                sockets.reset(given)
        self._results.clear()

    def _leave(self) -> None:
        self._forget()
        self._owner.engine.remove(self._descriptor)
        self._owner.connections.discard(self)

    def _ready(self, mask: int) -> None:
        if mask & OUT:
            self._send()
        for _ in range(BURST):
            try:
                data, ancillary, flags, _ = self.sock.recvmsg(MESSAGE_SIZE, ANCILLARY_SIZE)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if not data and not ancillary:
                self.close()
                return
            if not self._handle(data, _first(ancillary), flags):
                return

    def _handle(self, data: bytes, descriptor: int, flags: int) -> bool:
        """False when this connection is no longer ours to read."""
        try:
            if flags & CUT_OFF:
                raise ValueError(f"a message of more than {MESSAGE_SIZE} bytes, or descriptors that were cut off")
            request = wire.decode_attach(data)
        except ValueError as error:
            log.warning("attach refused", extra={"error": str(error)})
            if descriptor >= 0:
                os.close(descriptor)
            self.close()
            return False
        if isinstance(request, wire.Listen):
            if descriptor >= 0:
                os.close(descriptor)
            self._owner.on_listen(self)
            return True
        sock: socket.socket | None = None
        if descriptor >= 0:
            try:
                sock = _adopt(descriptor, request)
            except OSError as error:
                log.warning("attach refused", extra={"error": str(error)})
                self._refuse(request, Reason(DENIED, str(error)))
                return True
        if isinstance(request, Answer):
            self._owner.on_answer(request, sock)
            return True
        if sock is not None:
            self._owner.on_open(request, sock, self)
            return True
        # The connection itself is the stream from now on.
        request.give_back = False
        self._leave()
        self._owner.on_open(request, self.sock, self)
        return False

    def _refuse(self, request: OpenRequest | Answer, reason: Reason) -> None:
        if isinstance(request, Answer):
            self._owner.on_answer(Answer(request.token, reason), None)
        else:
            Caller(self, request).refused(reason, request.head)


class Caller:
    """Who asked for a stream, and what it wants to hear of it."""

    def __init__(self, connection: Connection, request: OpenRequest) -> None:
        self.connection = connection
        self.request = request
        self.accepted = False

    def accept(self, path: int, rtt: float) -> None:
        """The exit has connected the backend; `rtt` of the path in seconds, 0: not measured."""
        self.accepted = True
        if self.request.give_back:
            return
        self._say(wire.encode_result(self.request.number, None, path, rtt))

    def answered(self) -> None:
        """The first datagram of the backend came."""
        if self.request.watch:
            self._say(wire.encode_result(self.request.number, None, answered=True))

    def refused(self, reason: Reason, head: bytes = b"", given: socket.socket | None = None) -> None:
        """There will be no stream; `head` was read of the client and reached nobody. `given`: its socket goes back."""
        kept = head if self.request.keep or given is not None else b""
        self._say(wire.encode_result(self.request.number, reason, head=kept), given)

    def closed(self, reason: Reason | None, head: bytes = b"", given: socket.socket | None = None) -> None:
        """The stream is over; `reason` where the other side says why."""
        if self.accepted:
            if self.request.watch:
                refusal = reason if reason is not None and reason.code else None
                self._say(wire.encode_result(self.request.number, refusal, ended=True))
        elif given is not None:
            self.refused(reason or ENDED, head, given)
        elif not self.request.give_back and (reason is not None or self.request.keep or self.request.watch):
            self.refused(reason or GONE, head)

    def _say(self, result: bytes, given: socket.socket | None = None) -> None:
        if self.request.number:
            self.connection.answer(result, given)


class AttachSocket:
    """Listens on run_dir/tunnel.attach."""

    def __init__(self, engine: Engine, path: Path, on_open: OnOpen, on_answer: OnAnswer, on_listen: OnListen) -> None:
        self.engine = engine
        self.on_open = on_open
        self.on_answer = on_answer
        self.on_listen = on_listen
        self.connections: set[Connection] = set()
        self._path = path
        self._resume: asyncio.TimerHandle | None = None
        self._listening: socket.socket | None = None

    def open(self) -> None:
        """Listens. Only when the API does, which no other process serves then: what is at the path is a leftover."""
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._path.unlink(missing_ok=True)
        mask = os.umask(0o117)
        try:
            self._listening.bind(str(self._path))
        finally:
            os.umask(mask)
        self._listening.listen(128)
        self.engine.add(self._listening.fileno(), IN, self._accept)

    def _accept(self, _: int) -> None:
        listening = self._listening
        assert listening is not None
        for _ in range(BURST):
            try:
                sock, _peer = listening.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause(listening, error)
                return
            if len(self.connections) >= MAX_CONNECTIONS:
                sock.close()
                continue
            sock.setblocking(False)
            self.connections.add(Connection(self, sock))

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Who waits would be announced over and over: look again later."""
        log.warning("cannot accept on the attach socket", extra={"error": error.strerror})
        self.engine.remove(listening.fileno())
        self._resume = asyncio.get_running_loop().call_later(
            PAUSE, self.engine.add, listening.fileno(), IN, self._accept
        )

    def close(self) -> None:
        """Listens no more; streams stay."""
        if self._listening is None:
            return
        if self._resume is not None:
            self._resume.cancel()
        self.engine.remove(self._listening.fileno())
        self._listening.close()
        for connection in list(self.connections):
            connection.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def _first(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The first descriptor that came with a message, others are closed; -1: none."""
    first = -1
    for level, kind, data in ancillary:
        if level != socket.SOL_SOCKET or kind != socket.SCM_RIGHTS:
            continue
        for at in range(0, len(data) - DESCRIPTOR.size + 1, DESCRIPTOR.size):
            descriptor: int = DESCRIPTOR.unpack_from(data, at)[0]
            if first < 0:
                first = descriptor
            else:
                os.close(descriptor)
    return first


def _adopt(descriptor: int, request: OpenRequest | Answer) -> socket.socket:
    """The socket that was passed. OSError, and the descriptor is closed, when it cannot serve."""
    try:
        sock = sockets.adopt(descriptor)
    except OSError:
        os.close(descriptor)
        raise OSError("a descriptor was passed that is no socket") from None
    try:
        sock.getpeername()
        if isinstance(request, OpenRequest):
            wanted = socket.SOCK_DGRAM if request.opening.network == UDP else socket.SOCK_STREAM
            if sockets.kind(sock) != wanted:
                raise OSError("it is of the wrong kind: a datagram socket for TCP, or a stream socket for UDP")
    except OSError as error:
        sockets.reset(sock)
        raise OSError(f"the socket passed cannot be used: {error.strerror or error}") from None
    return sock
