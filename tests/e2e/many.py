"""Thousands of clients in one thread, and the server that answers them in a process of its own.

`python -m tests.e2e.many HOST PORT` is the server: it sends back what comes, over TCP and UDP.
"""

import asyncio
import contextlib
import errno
import resource
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator

PATIENCE = 120.0  # seconds for what takes a few when all is well
SECOND = 5.0  # seconds without an answer
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends a reset
BACKLOG = 4096


def raise_limit() -> int:
    """Lets this process have as many descriptors as it may. Returns how many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


class Crowd:
    """Sockets to one address, each of which says a word of its own and expects it back."""

    def __init__(self, address: tuple[str, int], kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
        self._address = address
        self._kind = kind
        self.socks: list[socket.socket] = []
        self.refused = 0
        """Connections that were reset, or ended, before their answer came."""
        self.again = 0
        """Datagrams that were sent once more, since no answer came for SECOND seconds."""
        self._said = 0

    def grow(self, count: int, *, at_once: int = 1 << 20) -> None:
        """So many more, of which at most `at_once` are on their way at a time; each is answered, or refused. TimeoutError
        for one that hangs."""
        want = deque(range(count))
        waiting: dict[int, tuple[socket.socket, bytes]] = {}
        deadline = time.monotonic() + PATIENCE
        look = time.monotonic() + SECOND
        with select.epoll() as epoll:
            while want or waiting:
                if self._kind == socket.SOCK_DGRAM and time.monotonic() > look:
                    look = time.monotonic() + SECOND
                    self.again += len(waiting)
                    for sock, _ in waiting.values():
                        waiting[sock.fileno()] = sock, b"%08d" % self._said
                        epoll.modify(sock, select.EPOLLOUT)
                while want and len(waiting) < at_once:
                    want.popleft()
                    sock = socket.socket(socket.AF_INET, self._kind | socket.SOCK_NONBLOCK)
                    if sock.connect_ex(self._address) not in (0, errno.EINPROGRESS):
                        self._refuse(sock)
                        continue
                    self._said += 1
                    waiting[sock.fileno()] = sock, b"%08d" % self._said
                    epoll.register(sock, select.EPOLLOUT)
                for number, _ in epoll.poll(0.2):
                    sock, word = waiting[number]
                    try:
                        if word:
                            sock.send(word)
                            waiting[number] = sock, b""
                            epoll.modify(sock, select.EPOLLIN)
                            continue
                        if len(sock.recv(64)) != 8:
                            raise ConnectionError
                        epoll.unregister(sock)
                        self.socks.append(sock)
                    except BlockingIOError:
                        continue
                    except OSError:
                        epoll.unregister(sock)
                        self._refuse(sock)
                    del waiting[number]
                if time.monotonic() > deadline:
                    for sock, _ in waiting.values():
                        sock.close()
                    raise TimeoutError(f"{len(waiting)} of {count} clients hang after {PATIENCE:.0f} s")

    def talk(self) -> int:
        """Every one says one more word. Returns how many were answered with it."""
        answered = 0
        deadline = time.monotonic() + PATIENCE
        waiting = {sock.fileno(): (sock, b"%08d" % number) for number, sock in enumerate(self.socks)}
        with select.epoll() as epoll:
            for sock, word in waiting.values():
                epoll.register(sock, select.EPOLLIN)
                with contextlib.suppress(OSError):
                    sock.send(word)
            while waiting and time.monotonic() < deadline:
                for number, _ in epoll.poll(0.2):
                    sock, word = waiting.pop(number)
                    epoll.unregister(sock)
                    with contextlib.suppress(OSError):
                        answered += sock.recv(64) == word
        return answered

    def close(self, *, reset: bool = False) -> None:
        """All of them go."""
        while self.socks:
            sock = self.socks.pop()
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()

    def _refuse(self, sock: socket.socket) -> None:
        self.refused += 1
        sock.close()


@contextlib.contextmanager
def crowd(address: tuple[str, int], kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[Crowd]:
    """One that goes at the end."""
    one = Crowd(address, kind)
    try:
        yield one
    finally:
        one.close()


class _Tcp(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class _Udp(asyncio.DatagramProtocol):
    _transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


async def serve(host: str, port: int) -> None:
    raise_limit()
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind((host, port))
    await loop.create_datagram_endpoint(_Udp, sock=sock)
    server = await loop.create_server(_Tcp, host, port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
