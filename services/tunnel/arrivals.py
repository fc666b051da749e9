"""Connections that a relay makes back to this node, because it was asked to: they say a token and no more.

protos/relay.proto, DialBack: "CWP1" and 16 random bytes. The relay tells the token on its control connection, too;
that both are equal proves that it was this node that was reached.
"""

import asyncio
import contextlib
import socket
from types import TracebackType

from services.runtime.core.proof import MAGIC, TOKEN_LENGTH
from services.tunnel import handshake

READ_TIMEOUT = 2.0
"""Seconds for the token."""
MAX_TOKENS = 64
"""Kept of one check; a check expects fewer than 20."""
MAX_OPEN = 16
"""Connections of a fresh port that have not said their token; more are hung up at once."""


class Arrivals:
    """The tokens that arrived. Only while somebody waits for some: else they are not kept."""

    def __init__(self) -> None:
        self.wanted = False
        self._tokens: set[bytes] = set()
        self._news = asyncio.Event()

    def clear(self) -> None:
        """A check is over, or begins."""
        self._tokens.clear()

    async def take(self, sock: socket.socket, head: bytes = b"") -> None:
        """Reads the token of a connection whose first bytes, `head`, are at hand, and hangs up."""
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                data = head + await handshake.receive_exactly(sock, len(MAGIC) + TOKEN_LENGTH - len(head))
        finally:
            sock.close()
        if data.startswith(MAGIC) and self.wanted and len(self._tokens) < MAX_TOKENS:
            self._tokens.add(data[len(MAGIC) :])
            self._news.set()

    async def wait(self, token: bytes, timeout: float) -> bool:
        """Whether the token arrives within `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while token not in self._tokens:
                    self._news.clear()
                    await self._news.wait()
        return token in self._tokens


class FreshPort:
    """A local port that nobody knows yet: it listens, and connections may be made from it. A context manager."""

    def __init__(self, arrivals: Arrivals, ip: str, family: socket.AddressFamily) -> None:
        """OSError when there is none. `ip`: to bind to; empty: any."""
        self._arrivals = arrivals
        self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._sock.bind((ip or ("::" if family == socket.AF_INET6 else "0.0.0.0"), 0))
            self._sock.listen(MAX_OPEN)
        except BaseException:
            self._sock.close()
            raise
        self.number = int(self._sock.getsockname()[1])
        self._readers: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept(), name="fresh port")

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._sock)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            sock.setblocking(False)
            if len(self._readers) >= MAX_OPEN:
                sock.close()
                continue
            task = asyncio.create_task(self._read(sock))
            self._readers.add(task)
            task.add_done_callback(self._readers.discard)

    async def _read(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, EOFError, TimeoutError):
            await self._arrivals.take(sock)

    async def __aenter__(self) -> "FreshPort":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [self._accepting, *self._readers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sock.close()
