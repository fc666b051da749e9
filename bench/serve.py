"""The far end of every measurement: a sink, an echo and a source behind one epoll loop.

`python -m bench.serve HOST` binds three free ports on HOST, prints
`{"sink": port, "echo": port, "source": port}` as its first line and serves until standard input ends.

- sink: swallows bytes until the client's FIN, then answers with the count (8 bytes, big endian). So the
  client's clock stops when the last byte has arrived, not when it has been queued.
- echo: gives back what it gets, in order.
- source: reads a count (8 bytes, big endian), sends that many bytes, closes.

The load must be cheap, or the bench would measure itself: the sink lets the kernel throw the bytes away
(`MSG_TRUNC`), the source sends pages of a memory file (`sendfile`).
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from collections.abc import Callable

CHUNK = 1 << 20  # bytes asked of the kernel at once
BACKLOG = 4096
COUNT = 8  # bytes of a count on the wire


def listen(host: str) -> socket.socket:
    """A non-blocking listener on a free port of `host`; TCP_NODELAY is inherited by what it accepts."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((host, 0))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def noise(name: str) -> int:
    """A memory file of CHUNK random bytes to send from: nobody gains by compression."""
    pages = os.memfd_create(name)
    os.write(pages, os.urandom(CHUNK))
    return pages


class Server:
    """Three listeners and all their connections; `run` returns when standard input ends."""

    def __init__(self, host: str) -> None:
        self._epoll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, Callable[[int], None]]] = {}
        self.ports: dict[str, int] = {}
        for name, welcome in (("sink", self._sink), ("echo", self._echo), ("source", self._source)):
            listener = listen(host)
            self._listeners[listener.fileno()] = (listener, welcome)
            self._epoll.register(listener.fileno(), select.EPOLLIN)
            self.ports[name] = listener.getsockname()[1]
        # What to do when a connection is ready; per kind the state that it needs.
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._sinks: dict[int, tuple[socket.socket, int]] = {}
        self._owed: dict[int, bytearray] = {}
        self._sources: dict[int, tuple[bytearray, int]] = {}
        self._scratch = bytearray(CHUNK)
        self._pages = noise("bench-source")

    def run(self) -> None:
        listeners, handlers, epoll = self._listeners, self._handlers, self._epoll
        epoll.register(0, select.EPOLLIN)
        while True:
            for fd, _ in epoll.poll(-1, 256):
                handler = handlers.get(fd)
                if handler is not None:
                    try:
                        handler(fd)
                    except BlockingIOError:
                        pass
                    except OSError:  # a reset is the client's business; it counts what it misses
                        self._close(fd)
                elif fd in listeners:
                    self._accept(*listeners[fd])
                elif fd == 0 and not os.read(0, 4096):
                    return

    def _accept(self, listener: socket.socket, welcome: Callable[[int], None]) -> None:
        for _ in range(64):
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            welcome(connection.detach())

    def _admit(self, fd: int, handler: Callable[[int], None]) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def _close(self, fd: int) -> None:
        del self._handlers[fd]
        self._owed.pop(fd, None)
        self._sources.pop(fd, None)
        if fd in self._sinks:
            self._sinks.pop(fd)[0].close()
        else:
            os.close(fd)

    def _sink(self, fd: int) -> None:
        self._sinks[fd] = (socket.socket(fileno=fd), 0)
        self._admit(fd, self._swallow)

    def _swallow(self, fd: int) -> None:
        connection, total = self._sinks[fd]
        # With MSG_TRUNC the kernel drops up to CHUNK bytes of a TCP stream without copying them (tcp(7)).
        count = connection.recv_into(self._scratch, CHUNK, socket.MSG_TRUNC)
        self._sinks[fd] = (connection, total + count)
        if not count:
            connection.send(total.to_bytes(COUNT, "big"))
            self._close(fd)

    def _echo(self, fd: int) -> None:
        self._admit(fd, self._give_back)

    def _give_back(self, fd: int) -> None:
        data = os.read(fd, 65536)
        if not data:
            self._close(fd)
            return
        try:
            sent = os.write(fd, data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):  # the client does not read: stop reading it until it does
            self._owed[fd] = bytearray(data[sent:])
            self._handlers[fd] = self._pay
            self._epoll.modify(fd, select.EPOLLOUT)

    def _pay(self, fd: int) -> None:
        owed = self._owed[fd]
        del owed[: os.write(fd, owed)]
        if not owed:
            del self._owed[fd]
            self._handlers[fd] = self._give_back
            self._epoll.modify(fd, select.EPOLLIN)

    def _source(self, fd: int) -> None:
        self._sources[fd] = (bytearray(), -1)
        self._admit(fd, self._read_order)

    def _read_order(self, fd: int) -> None:
        order, _ = self._sources[fd]
        data = os.read(fd, COUNT - len(order))
        if not data:
            self._close(fd)
            return
        order += data
        if len(order) == COUNT:
            self._sources[fd] = (order, int.from_bytes(order, "big"))
            self._handlers[fd] = self._pour
            self._epoll.modify(fd, select.EPOLLOUT)

    def _pour(self, fd: int) -> None:
        order, left = self._sources[fd]
        if left:
            left -= os.sendfile(fd, self._pages, 0, min(left, CHUNK))
            self._sources[fd] = (order, left)
        if not left:
            self._close(fd)


def main() -> None:
    server = Server(sys.argv[1])
    print(json.dumps(server.ports), flush=True)
    server.run()


if __name__ == "__main__":
    main()
