"""The local port, and its clients until the tunnel has them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from causeway.errors import CommandError
from causeway.forward.control import GONE, Control, Outcome
from causeway.forward.target import Backend, Turns
from services.runtime.address import join

MAX_CLIENTS = 512  # that wait for a backend, or are carried here; further ones wait in the backlog
MAX_TRIES = 4  # backends that one client may try, as in the proxy
MAX_FLOWS = 512  # of UDP, each with a descriptor; then the one that was used longest ago makes room
FLOW_IDLE = 60.0  # seconds without a datagram until a flow ends; as long as the tunnel's
_PAUSE = 0.2  # seconds without accepting when descriptors or memory have run out
_CHUNK = 256 * 1024  # bytes a read; the largest record of a session
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends a reset

Refused = Callable[[str, Outcome], None]
"""Told of a client ("ip:port") that got no backend."""


@dataclass(slots=True)
class Way:
    """What a listener needs to send its clients on."""

    node: str  # this one: its backends are dialled, not asked for
    control: Control
    turns: Turns
    refused: Refused


class Listener(Protocol):
    """Either kind. Made by `listen`."""

    @property
    def address(self) -> str: ...
    async def close(self) -> None: ...


def listen(ip: str, port: int, way: Way, *, udp: bool) -> Listener:
    """Opens the port. Raises CommandError."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sock = socket.socket(family, (socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) | socket.SOCK_NONBLOCK)
    try:
        if not udp:
            # Connections of an earlier run that the tunnel still carries hold the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((ip, port))
        if not udp:
            sock.listen(128)
    except OSError as error:
        sock.close()
        raise CommandError(f"cannot listen on {join(ip, port)}: {error.strerror}") from None
    return Datagrams(sock, way) if udp else Streams(sock, way)


class _Tasks:
    """Tasks that have an owner."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Streams:
    """Of TCP. An accepted client's socket goes to the tunnel, which carries it from then on."""

    def __init__(self, sock: socket.socket, way: Way) -> None:
        self.address = _name(sock.getsockname())
        self._sock = sock
        self._way = way
        self._clients = _Tasks()
        self._room = asyncio.Semaphore(MAX_CLIENTS)
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """Listens no longer. What the tunnel carries lives on; what goes to this node's own backends ends."""
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        await self._clients.end()
        self._sock.close()

    @contextlib.contextmanager
    def _one_less(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._room.release()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()  # the backlog holds who comes meanwhile
            try:
                client, address = await loop.sock_accept(self._sock)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    await asyncio.sleep(_PAUSE)
                self._room.release()
                continue
            self._clients.start(self._serve(client, _name(address)))

    async def _serve(self, client: socket.socket, name: str) -> None:
        outcome = Outcome("no-endpoint", "the service has no endpoint that is ready")
        with client, self._one_less():
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for backend in self._way.turns.order()[:MAX_TRIES]:
                if backend.node == self._way.node:
                    outcome = await _carry(client, backend, outcome.head)
                else:
                    outcome = await self._way.control.open(backend, client, name, udp=False, head=outcome.head)
                if outcome.reason in ("", GONE):
                    return
            self._way.refused(name, outcome)
            with contextlib.suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


async def _carry(client: socket.socket, backend: Backend, head: bytes) -> Outcome:
    """To a backend on this node: until both sides have ended."""
    try:
        reader, writer = await asyncio.open_connection(backend.host, backend.port)
    except OSError as error:
        reason = "connection-refused" if isinstance(error, ConnectionRefusedError) else "unreachable"
        return Outcome(reason, f"connect to {backend.address}: {error.strerror or error}", head)
    loop = asyncio.get_running_loop()

    async def there() -> None:
        data = head or await loop.sock_recv(client, _CHUNK)
        while data:
            writer.write(data)
            await writer.drain()
            data = await loop.sock_recv(client, _CHUNK)
        writer.write_eof()

    async def back() -> None:
        while data := await reader.read(_CHUNK):
            await loop.sock_sendall(client, data)
        client.shutdown(socket.SHUT_WR)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(there())
            group.create_task(back())
    except* OSError:  # one side was reset: so becomes the other
        with contextlib.suppress(OSError):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
    finally:
        writer.close()
    return Outcome()


class _Flow:
    """Of one client of UDP. `near` is connected to the backend, or to the socket that the tunnel has."""

    __slots__ = ("near", "used_at")

    def __init__(self, near: socket.socket, used_at: float) -> None:
        self.near = near
        self.used_at = used_at


class Datagrams:
    """Of UDP. Each client gets a pair of sockets of which the tunnel has one; here they are only passed on, one by one."""

    def __init__(self, sock: socket.socket, way: Way) -> None:
        self.address = _name(sock.getsockname())
        self._sock = sock
        self._way = way
        self._loop = asyncio.get_running_loop()
        self._flows: dict[tuple[Any, ...], _Flow] = {}  # by client; the one used longest ago first
        self._asked = _Tasks()
        self._loop.add_reader(sock, self._readable)
        self._sweep = self._loop.call_later(FLOW_IDLE / 4, self._expire)

    async def close(self) -> None:
        """Ends the flows, too: they pass through here."""
        self._sweep.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for client in list(self._flows):
            self._drop(client)
        await self._asked.end()

    def _readable(self) -> None:
        for _ in range(64):  # then others get their turn
            try:
                datagram, client = self._sock.recvfrom(65_535)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error of an earlier datagram
                continue
            flow = self._flows.pop(client, None)
            if flow is not None:
                self._flows[client] = flow  # the latest
                if self._pass_on(flow, datagram):
                    continue
                self._drop(client)  # the tunnel has ended it
            flow = self._open(client)
            if flow is not None:
                self._pass_on(flow, datagram)

    def _pass_on(self, flow: _Flow, datagram: bytes) -> bool:
        flow.used_at = self._loop.time()
        try:
            flow.near.send(datagram)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # no room: UDP may lose
        # Over loopback the answer of a closed port is here when `send` returns: the datagram is not lost, then.
        return flow.near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != errno.ECONNREFUSED

    def _open(self, client: tuple[Any, ...]) -> _Flow | None:
        order = self._way.turns.order()
        if not order:
            self._way.refused(_name(client), Outcome("no-endpoint", "the service has no endpoint that is ready"))
            return None
        if len(self._flows) >= MAX_FLOWS:
            self._drop(next(iter(self._flows)))
        backend = order[0]
        try:
            near, far = _connected(backend) if backend.node == self._way.node else _pair()
        except OSError as error:
            self._way.refused(_name(client), Outcome("unreachable", f"{backend.address}: {error.strerror or error}"))
            return None
        flow = self._flows[client] = _Flow(near, self._loop.time())
        self._loop.add_reader(near, self._answered, client, flow)
        if far is not None:
            self._asked.start(self._ask(backend, far, _name(client)))
        return flow

    async def _ask(self, backend: Backend, far: socket.socket, client: str) -> None:
        with far:
            outcome = await self._way.control.open(backend, far, client, udp=True)
        if outcome.reason:
            self._way.refused(client, outcome)

    def _answered(self, client: tuple[Any, ...], flow: _Flow) -> None:
        for _ in range(64):
            try:
                datagram = flow.near.recv(65_535)
            except BlockingIOError:
                return
            except OSError:
                if self._flows.get(client) is flow:
                    self._drop(client)
                return
            flow.used_at = self._loop.time()
            with contextlib.suppress(OSError):
                self._sock.sendto(datagram, client)

    def _expire(self) -> None:
        now = self._loop.time()
        for client in [client for client, flow in self._flows.items() if now - flow.used_at >= FLOW_IDLE]:
            self._drop(client)
        self._sweep = self._loop.call_later(FLOW_IDLE / 4, self._expire)

    def _drop(self, client: tuple[Any, ...]) -> None:
        flow = self._flows.pop(client)
        self._loop.remove_reader(flow.near)
        flow.near.close()


def _connected(backend: Backend) -> tuple[socket.socket, None]:
    """To a backend on this node. The name is looked up at once: a node's own names are in its files."""
    found = socket.getaddrinfo(backend.host, backend.port, type=socket.SOCK_DGRAM)[0]
    near = socket.socket(found[0], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        near.connect(found[4])
    except OSError:
        near.close()
        raise
    return near, None


def _pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets of this host, connected to each other. Not AF_UNIX, whose queues may hold just ten datagrams
    (net.unix.max_dgram_qlen)."""
    ends = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) for _ in range(2)]
    for sock in ends:
        sock.bind(("127.0.0.1", 0))
    for sock, other in (ends, ends[::-1]):
        sock.connect(other.getsockname())
    return ends[0], ends[1]


def _name(address: tuple[Any, ...]) -> str:
    return join(address[0], address[1])
