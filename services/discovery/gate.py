"""In front of the public gRPC server: whoever comes, only so many connections cost memory.

gRPC cannot bound its connections, and each costs it up to 50 KiB from the first byte on (measured: 4,000 half-open
ones made the process 200 MiB larger). So the port is ours: a visitor is let through to the server, on a Unix
socket, when a whole TLS ClientHello has come. Where there is no room, the least recently active one of the source that has
most of them yields. Bytes go through as they are: TLS ends in gRPC, which knows the caller by certificate. Only who asks why
gRPC refuses them is answered here (`inquiry`).
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
import urllib.parse
from collections import Counter
from pathlib import Path

from services.runtime.address import join
from services.runtime.core.crowd import Crowd, source_of
from services.runtime.dial import DIAGNOSIS

from .inquiry import Desk, Inquiry

# Visitors that have not said a whole ClientHello: how many, and for how long, seconds.
MAX_WAITING = 256
HELLO_TIMEOUT = 5.0
# Visitors at the server; one idle for five minutes is closed by gRPC.
MAX_INSIDE = 512
# TLS record header, and the largest plaintext record (RFC 8446, 5.1).
_HEADER = 5
_RECORD = 16_384
_HANDSHAKE = 0x16
# How our ends of the connections with the server begin; abstract names (unix(7)), so there are no files.
_NAME = "causeway-visitor/"
# A refused connection is closed by reset, so that it leaves nothing behind in the kernel.
_BACKLOG = 128


class Gate:
    """Listens on the public port; `backend` is the Unix socket of the server behind.

    `counts` receives ("visitors", "admitted" | "refused" | "evicted"). `desk`: answers who asks why they are refused.
    """

    def __init__(self, backend: Path, counts: Counter[tuple[str, str]], desk: Desk) -> None:
        self._backend = backend
        self.desk = desk
        self._counts = counts
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.waiting = Crowd[Visitor](MAX_WAITING)
        self.inside = Crowd[Visitor](MAX_INSIDE)

    async def open(self, listen_address: str, port: int) -> str:
        """Listen on one address, or on all ("", IPv4 and IPv6). Returns where; OSError says what is wrong."""
        loop = asyncio.get_running_loop()
        sock = _listener(listen_address, port)
        self._server = await loop.create_server(lambda: Visitor(self), sock=sock, backlog=_BACKLOG)
        return join(listen_address or "*", port)

    async def close(self) -> None:
        """Listen no more, and close all visitors."""
        if self._server is not None:
            self._server.close()
        for visitor in [*self.waiting, *self.inside]:
            visitor.leave()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def arrive(self, visitor: Visitor) -> None:
        """A connection that has said nothing yet."""
        self._enter(self.waiting, visitor)

    def admit(self, visitor: Visitor) -> None:
        """A connection that has said a whole ClientHello: let it through."""
        self.waiting.leave(visitor)
        self._enter(self.inside, visitor)
        self._counts["visitors", "admitted"] += 1
        task = asyncio.get_running_loop().create_task(self._lead_in(visitor))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def refuse(self, visitor: Visitor) -> None:
        """A connection that speaks no TLS."""
        self._counts["visitors", "refused"] += 1
        visitor.leave()

    def touch(self, visitor: Visitor) -> None:
        """It is active."""
        self.inside.touch(visitor)

    def depart(self, visitor: Visitor) -> None:
        """It is gone."""
        self.waiting.leave(visitor)
        self.inside.leave(visitor)

    def _enter(self, crowd: Crowd[Visitor], visitor: Visitor) -> None:
        yielded = crowd.enter(visitor, source_of(visitor.ip))
        if yielded is not None:
            yielded.leave()
            self._counts["visitors", "evicted"] += 1

    async def _lead_in(self, visitor: Visitor) -> None:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            # Our end has a name that says who is behind it: to the server all come from a Unix socket.
            sock.bind(f"\0{_NAME}{secrets.token_hex(8)}/{visitor.ip}")
            await loop.sock_connect(sock, str(self._backend))
            await loop.create_unix_connection(lambda: Inner(visitor), sock=sock)
        except OSError:
            sock.close()
            visitor.leave()


class Visitor(asyncio.Protocol):
    """The connection with another node."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._head = bytearray()
        self._inner: Inner | None = None
        self._inquiry: Inquiry | None = None
        self._admitted = False
        self.ip = ""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.ip = str((transport.get_extra_info("peername") or ("",))[0]).removeprefix("::ffff:")
        self._gate.arrive(self)
        self._timer = asyncio.get_running_loop().call_later(HELLO_TIMEOUT, self.leave)

    def data_received(self, data: bytes) -> None:
        if self._inner is not None:
            self._gate.touch(self)
            self._inner.transport.write(data)
            return
        if self._inquiry is not None:
            self._ask(self._inquiry, data)
            return
        self._head += data
        if self._admitted:
            # The server is being connected; a ClientHello is all a client sends before it is answered.
            self.transport.pause_reading()
            return
        verdict = judge(self._head)
        if verdict is False:
            self._gate.refuse(self)
        elif verdict is True and DIAGNOSIS in self._head:
            self._inquiry = self._gate.desk.open(self.ip, self.transport.write)
            self._ask(self._inquiry, self._head)
        elif verdict is True:
            self._admitted = True
            self._timer.cancel()
            self._gate.admit(self)

    def _ask(self, inquiry: Inquiry, data: bytes | bytearray) -> None:
        """Within the time that a ClientHello has."""
        if inquiry.receive(data):
            self.transport.close()

    def eof_received(self) -> bool:
        if self._inner is None:
            return False
        self._inner.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._gate.depart(self)
        if self._inner is not None:
            self._inner.transport.close()

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.transport.resume_reading()

    def join(self, inner: Inner) -> None:
        """The server is connected."""
        if self.transport.is_closing():
            inner.transport.close()
            return
        self._inner = inner
        inner.transport.write(bytes(self._head))
        self._head.clear()
        self.transport.resume_reading()

    def leave(self) -> None:
        """Close now; what is queued is dropped."""
        self._timer.cancel()
        self._gate.depart(self)
        self.transport.abort()


class Inner(asyncio.Protocol):
    """The connection with our gRPC server, for one visitor."""

    def __init__(self, visitor: Visitor) -> None:
        self._visitor = visitor
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._visitor.join(self)

    def data_received(self, data: bytes) -> None:
        self._visitor.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._visitor.transport.close()

    def pause_writing(self) -> None:
        self._visitor.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._visitor.transport.is_closing():
            self._visitor.transport.resume_reading()


def visitor_ip(peer: str) -> str:
    """The IP from which a call comes, of what gRPC says of its other end; empty when it did not come through here."""
    scheme, _, name = urllib.parse.unquote(peer).partition(":")
    if scheme != "unix-abstract" or not name.startswith(_NAME):
        return ""
    return name.rpartition("/")[2]


def judge(head: bytes | bytearray) -> bool | None:
    """Whether a connection begins with a whole TLS handshake record; None while that is open."""
    for index, (low, high) in enumerate(((_HANDSHAKE, _HANDSHAKE), (3, 3), (1, 4))):
        if index < len(head) and not low <= head[index] <= high:
            return False
    if len(head) < _HEADER:
        return None
    length = int.from_bytes(head[3:_HEADER], "big")
    if not 0 < length <= _RECORD:
        return False
    return True if len(head) >= _HEADER + length else None


def _listener(listen_address: str, port: int) -> socket.socket:
    hosts = [listen_address] if listen_address else ["::", "0.0.0.0"]
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:
            continue  # no IPv6 here
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((host, port))
            return sock
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:
                raise OSError(
                    error.errno,
                    f"port {port} is taken at {listen_address or 'this host'}: another process listens there; stop it, "
                    "or change modules.edgeDiscovery.listenPort",
                ) from None
            if host == hosts[-1]:
                raise OSError(
                    error.errno,
                    f"{join(host, port)} cannot be listened on ({(error.strerror or str(error)).lower()}); check listenAddress and "
                    "modules.edgeDiscovery.listenPort",
                ) from None
    raise OSError(errno.EAFNOSUPPORT, f"port {port} cannot be listened on: this host has neither IPv4 nor IPv6")
