"""Listening for TCP clients."""

import asyncio
import errno
import socket
from collections.abc import Callable
from logging import Logger
from typing import Generic, Protocol, TypeVar

from services.proxy.core.catalog import Spot
from services.runtime import keepalive
from services.runtime.sockets import accept

BACKLOG = 1024  # connections the kernel holds for us
BURST = 64  # accepts a turn of the loop: a storm on one service leaves room for the others
CROWDED = 0.01  # s without accepting while the tunnel is behind; clients wait in the backlog, instead of being refused
PAUSE = 0.2  # s without accepting after descriptors or memory ran out; clients wait in the backlog

# accept(2): errors of the connection that was to be accepted, not of the listener.
_PASSING = {
    errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET,
    errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM, errno.EINTR,
}  # fmt: skip


class Labelled(Protocol):
    """What a listener is for, as the log names it."""

    @property
    def label(self) -> str: ...


R = TypeVar("R", bound=Labelled)
R_contra = TypeVar("R_contra", contravariant=True)


class Taker(Protocol[R_contra]):
    """Who takes the clients: `Departure` sends them on their way, a gateway talks to them first."""

    def send(self, client: socket.socket, address: tuple[str, int], route: R_contra, /) -> None: ...


class Acceptor:
    """Every client of `spot` is given to `take`. Raises OSError when the address cannot be had."""

    def __init__(
        self,
        spot: Spot,
        label: str,
        take: Callable[[socket.socket, tuple[str, int]], None],
        log: Logger,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        """`crowded`: clients come faster than `take` can send them on, and had better wait."""
        self._label = label
        self._take = take
        self._crowded = crowded
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        self._family = socket.AF_INET6 if ":" in spot.ip else socket.AF_INET
        self._sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
        try:
            if self._family == socket.AF_INET6:
                self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Connections that the tunnel still carries hold the port after a restart of the proxy.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit it: one system call here instead of one for each client.
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keepalive.watch(self._sock)  # inherited, too
            self._sock.bind((spot.ip, spot.port))
            self._sock.listen(BACKLOG)
        except OSError:
            self._sock.close()
            raise
        self._loop.add_reader(self._sock, self._accept, BURST)

    def close(self) -> None:
        """Takes those who are in the backlog already, and listens no longer."""
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._sock)
        self.drain()
        if self._resume is not None:
            self._resume.cancel()
        self._sock.close()

    def drain(self) -> None:
        """Sends on those who are in the backlog now."""
        self._accept(BACKLOG)

    def _accept(self, burst: int) -> None:
        take = self._take
        if burst == BURST and self._crowded():
            self._wait(CROWDED)
            return
        for _ in range(burst):
            try:
                client, address = accept(self._sock, self._family)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _PASSING:
                    continue
                self._pause(error)
                return
            take(client, address)

    def _pause(self, error: OSError) -> None:
        """Out of descriptors or memory (EMFILE, ENFILE, ENOBUFS, ENOMEM): without a pause the loop would spin."""
        self._log.warning("cannot accept: %s; pausing %.1f s", error.strerror, PAUSE, extra={"target": self._label})
        self._wait(PAUSE)

    def _wait(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock)
        self._resume = self._loop.call_later(seconds, self._loop.add_reader, self._sock, self._accept, BURST)


class TcpListener(Acceptor, Generic[R]):
    """Clients of one route."""

    error = ""
    intercepted = False

    def __init__(
        self, spot: Spot, route: R, taker: Taker[R], log: Logger, crowded: Callable[[], bool] = lambda: False
    ) -> None:
        """Raises OSError when the address cannot be had."""
        self.route = route
        self._taker = taker
        super().__init__(spot, route.label, self._send, log, crowded)

    def _send(self, client: socket.socket, address: tuple[str, int]) -> None:
        self._taker.send(client, address, self.route)
