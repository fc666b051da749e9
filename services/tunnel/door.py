"""The public port: connections that nobody has vouched for yet.

At most MAX_HALF_OPEN of them, each with HANDSHAKE_TIMEOUT to prove itself. A new one pushes out the oldest of the
source that has most of them, so a flood locks out nobody but itself.
"""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from math import inf

from services.runtime.core.crowd import Crowd, source_of
from services.tunnel import dialling
from services.tunnel.config import MAX_HALF_OPEN
from services.tunnel.linkio import ends, tune

log = logging.getLogger("causeway.tunnel")

PAUSE = 0.2
"""Seconds without accepting after it failed."""
EPISODE = 10.0
"""Seconds: a failure that follows the last one sooner is the same trouble, and is not told again."""

Welcome = Callable[[socket.socket, str], Awaitable[None]]
"""Takes over a connection (and its socket); the second argument names the relay it came through, "" if direct."""


class Door:
    """Accepts on the public port and runs `welcome` for each connection."""

    def __init__(self, welcome: Welcome) -> None:
        self._welcome = welcome
        self._sock: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._half_open = Crowd[asyncio.Task[None]](MAX_HALF_OPEN)
        self.evicted = 0

    def open(self, ip: str, port: int) -> None:
        """Listens; OSError with the address in it when it can't."""
        try:
            self._sock = dialling.listener(ip, port)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot listen on {dialling.join(ip or '*', port)}: {error.strerror}; "
                "is another tunnel running? Set modules.edgeTunnel.listenPort or listenAddress",
            ) from error
        self._accepting = asyncio.create_task(self.accept(self._sock), name="door")

    async def accept(self, listener: socket.socket) -> None:
        """Admits whoever connects there, until it is cancelled."""
        loop = asyncio.get_running_loop()
        failed_at = -inf
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno == errno.ECONNABORTED:  # it left before it was accepted: the next one may be honest
                    await asyncio.sleep(0)
                    continue
                now = loop.time()
                if now - failed_at > EPISODE:
                    log.warning("cannot accept", extra={"error": error.strerror})
                failed_at = now
                await asyncio.sleep(PAUSE)
                continue
            self.admit(sock, "")
            # Under a flood the next one is there already, and sock_accept would never let anybody else run.
            await asyncio.sleep(0)

    def admit(self, sock: socket.socket, relay: str) -> asyncio.Task[None]:
        """Runs `welcome` for a connection."""
        task = asyncio.create_task(self._guarded(sock, relay))
        yielded = self._half_open.enter(task, relay or source_of(ends(sock)[1]))
        if yielded is not None:
            yielded.cancel()
            self.evicted += 1
        task.add_done_callback(lambda done: self._forget(done, sock))
        return task

    def _forget(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        self._half_open.leave(task)
        if task.cancelled():  # perhaps before it began
            sock.close()

    async def _guarded(self, sock: socket.socket, relay: str) -> None:
        try:
            tune(sock)
            await self._welcome(sock, relay)
        except asyncio.CancelledError:
            sock.close()
            raise
        except Exception as error:
            sock.close()
            log.error("welcome failed", extra={"error": repr(error)}, exc_info=error)

    @property
    def half_open(self) -> int:
        return len(self._half_open)

    async def close(self) -> None:
        """Listens no more."""
        tasks = [*self._half_open, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._sock is not None:
            self._sock.close()
