"""Legs whose other leg is not there yet."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from services.runtime.sockets import reset


class Waiting:
    """Owns their sockets, by the key that the public port gave them, until they are taken."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._legs: dict[int, socket.socket] = {}

    def __len__(self) -> int:
        return len(self._legs)

    def add(self, key: int, sock: socket.socket, on_hang_up: Callable[[], None]) -> None:
        """`on_hang_up`: its owner closed it. It must be taken then."""
        self._legs[key] = sock
        self._loop.add_reader(sock.fileno(), self._stir, sock, on_hang_up)

    def take(self, key: int) -> socket.socket:
        """It waits no longer."""
        sock = self._legs.pop(key)
        self._loop.remove_reader(sock.fileno())
        return sock

    def close(self) -> None:
        """Reset all."""
        for key in list(self._legs):
            reset(self.take(key))

    def _stir(self, sock: socket.socket, on_hang_up: Callable[[], None]) -> None:
        try:
            ahead = sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            ahead = b""
        if ahead:  # for the other leg; the end behind it is noticed when they are joined, or in the time to pair
            self._loop.remove_reader(sock.fileno())
        else:
            on_hang_up()
