"""The attach socket: where the proxy (or anything else on this node) hands over sockets.

SOCK_SEQPACKET, one message and at most one descriptor each; see Attach in protos/tunnel.proto. It lives in the
engine's epoll, since it is used once per connection.
"""

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from services.tunnel import servicer
from services.tunnel.core.frames import UDP, Reason
from services.tunnel.engine import BROKEN, IN, Engine
from services.tunnel.servicer import Answer, OpenRequest

log = logging.getLogger("causeway.tunnel")

MESSAGE_SIZE = 64 * 1024
MAX_CONNECTIONS = 1024
"""Connections to the attach socket; one per local component or `causeway nc`, but also streams of their own."""
BURST = 32
"""Messages taken from one connection before others get their turn."""

OnOpen = Callable[[OpenRequest, socket.socket, "Connection"], None]
OnAnswer = Callable[[Answer, socket.socket | None], None]


class Connection:
    """One client of the attach socket."""

    def __init__(self, owner: "AttachSocket", sock: socket.socket) -> None:
        self.sock = sock
        self._owner = owner
        self._descriptor = sock.fileno()
        owner.engine.add(self._descriptor, IN, self._ready)

    def answer(self, number: int, refusal: Reason | None, path: int) -> None:
        """Sends an AttachResult, if one was asked for and the other end listens."""
        if number and self.sock.fileno() >= 0:
            with contextlib.suppress(OSError):
                self.sock.send(servicer.encode_result(number, refusal, path))

    def close(self) -> None:
        self._leave()
        self.sock.close()

    def _leave(self) -> None:
        self._owner.engine.remove(self._descriptor)
        self._owner.connections.discard(self)

    def _ready(self, mask: int) -> None:
        for _ in range(BURST):
            try:
                data, descriptors, flags, _ = socket.recv_fds(self.sock, MESSAGE_SIZE, 4)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if not data and not descriptors:
                self.close()
                return
            for extra in descriptors[1:]:
                os.close(extra)
            if not self._handle(data, descriptors[0] if descriptors else -1, flags):
                return
        if mask & BROKEN:
            self.close()

    def _handle(self, data: bytes, descriptor: int, flags: int) -> bool:
        """False when this connection is no longer ours to read."""
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError(f"a message of more than {MESSAGE_SIZE} bytes, or descriptors that were cut off")
            request = servicer.decode_attach(data)
        except ValueError as error:
            log.warning("attach refused", extra={"error": str(error)})
            if descriptor >= 0:
                os.close(descriptor)
            self.close()
            return False
        if isinstance(request, Answer):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=descriptor) if descriptor >= 0 else None
            self._owner.on_answer(request, sock)
            return True
        if descriptor >= 0:
            kind = socket.SOCK_DGRAM if request.opening.network == UDP else socket.SOCK_STREAM
            self._owner.on_open(request, socket.socket(socket.AF_INET, kind, 0, fileno=descriptor), self)
            return True
        # The connection itself is the stream from now on.
        self._leave()
        self._owner.on_open(request, self.sock, self)
        return False


class AttachSocket:
    """Listens on run_dir/tunnel.attach."""

    def __init__(self, engine: Engine, path: Path, on_open: OnOpen, on_answer: OnAnswer) -> None:
        self.engine = engine
        self.on_open = on_open
        self.on_answer = on_answer
        self.connections: set[Connection] = set()
        self._path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        path.unlink(missing_ok=True)
        mask = os.umask(0o117)
        try:
            self._sock.bind(str(path))
        finally:
            os.umask(mask)
        self._sock.listen(128)
        engine.add(self._sock.fileno(), IN, self._accept)

    def _accept(self, _: int) -> None:
        for _ in range(BURST):
            try:
                sock, _peer = self._sock.accept()
            except OSError:
                return
            if len(self.connections) >= MAX_CONNECTIONS:
                sock.close()
                continue
            sock.setblocking(False)
            self.connections.add(Connection(self, sock))

    def close(self) -> None:
        """Listens no more; streams stay."""
        self.engine.remove(self._sock.fileno())
        self._sock.close()
        for connection in list(self.connections):
            connection.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def reset(sock: socket.socket) -> None:
    """Closes an application's socket so that it sees a reset and not an orderly end."""
    with contextlib.suppress(OSError):
        if sock.type == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
