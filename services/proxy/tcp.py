"""Listening for TCP clients."""

import asyncio
import errno
import socket
from logging import Logger

from services.proxy.core.catalog import Spot
from services.proxy.departure import Departure, Route

BACKLOG = 1024  # connections the kernel holds for us
BURST = 64  # accepts a turn of the loop: a storm on one service leaves room for the others
PAUSE = 0.2  # s without accepting after descriptors or memory ran out; clients wait in the backlog

# accept(2): errors of the connection that was to be accepted, not of the listener.
_PASSING = {
    errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET,
    errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM, errno.EINTR,
}  # fmt: skip


class Acceptor:
    """Accepts on one address; what becomes of a client says whoever derives from it. Raises OSError when the address cannot
    be had."""

    def __init__(self, ip: str, port: int, log: Logger) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        self._sock = socket.socket(
            socket.AF_INET6 if ":" in ip else socket.AF_INET,
            socket.SOCK_STREAM | socket.SOCK_NONBLOCK,
            socket.IPPROTO_TCP,
        )
        try:
            if self._sock.family == socket.AF_INET6:
                self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Connections that the tunnel still carries hold the port after a restart of the proxy.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit it: one system call here instead of one for each client.
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sock.bind((ip, port))
            self._sock.listen(BACKLOG)
        except OSError:
            self._sock.close()
            raise
        self._loop.add_reader(self._sock, self._accept, BURST)

    @property
    def label(self) -> str:
        """Whom the clients want, for the log."""
        raise NotImplementedError

    def close(self) -> None:
        """Sends on those who are in the backlog already, and listens no longer."""
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

    def _welcome(self, client: socket.socket, address: tuple[str, int]) -> None:
        """Owns `client` from now on."""
        raise NotImplementedError

    def _accept(self, burst: int) -> None:
        accept, welcome = self._sock.accept, self._welcome
        for _ in range(burst):
            try:
                client, address = accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _PASSING:
                    continue
                self._pause(error)
                return
            welcome(client, address)

    def _pause(self, error: OSError) -> None:
        """Out of descriptors or memory (EMFILE, ENFILE, ENOBUFS, ENOMEM): without a pause the loop would spin."""
        self._log.warning("cannot accept: %s; pausing %.1f s", error.strerror, PAUSE, extra={"target": self.label})
        self._loop.remove_reader(self._sock)
        self._resume = self._loop.call_later(PAUSE, self._loop.add_reader, self._sock, self._accept, BURST)


class TcpListener(Acceptor):
    """Of one service port. Raises OSError when the address cannot be had."""

    error = ""
    intercepted = False

    def __init__(self, spot: Spot, route: Route, departure: Departure, log: Logger) -> None:
        self.route = route
        self._departure = departure
        super().__init__(spot.ip, spot.port, log)

    @property
    def label(self) -> str:
        """ "namespace/name:port"."""
        return self.route.label

    def _welcome(self, client: socket.socket, address: tuple[str, int]) -> None:
        self._departure.send(client, address, self.route)
