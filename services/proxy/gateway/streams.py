"""Connections as asyncio streams: clients with or without TLS, the near ends of what goes to backends, and raw copying."""

import asyncio
import socket
import ssl
from collections.abc import Callable

READ = 64 * 1024  # bytes a read; the stream's buffers hold at most twice that each way
HANDSHAKE = 10.0  # s for the TLS handshake
SHUTDOWN = 2.0  # s for TLS to close in good order
LINGER = 2.0  # s in which a client may take the answer to what it is still sending


class _Protocol(asyncio.StreamReaderProtocol):
    """Tells when the connection is gone; a client that only ended its sending is still there."""

    lost: Callable[[], None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.lost is not None:
            self.lost()


class Stream:
    """One connection. Every method may raise OSError (ssl.SSLError is one)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: _Protocol) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = protocol

    @classmethod
    async def adopt(cls, sock: socket.socket, context: ssl.SSLContext | None = None) -> "Stream":
        """Takes over a connected socket, with `context` as the server's side of TLS. Raises OSError."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(READ, loop)
        protocol = _Protocol(reader, loop=loop)
        sock.setblocking(False)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                sock,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE if context else None,
                ssl_shutdown_timeout=SHUTDOWN if context else None,
            )
        except BaseException:
            sock.close()
            raise
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop), protocol)

    @property
    def alpn(self) -> str:
        """The protocol that TLS agreed on; "" without."""
        tls = self._writer.get_extra_info("ssl_object")
        return (tls.selected_alpn_protocol() or "") if tls is not None else ""

    def on_lost(self, call: Callable[[], None] | None) -> None:
        """Called when the connection is gone for good."""
        self._protocol.lost = call

    async def read(self) -> bytes:
        """What has come; empty at the end."""
        return await self._reader.read(READ)

    async def idle(self) -> None:
        """Returns when anything comes, the end included; what came is lost. Can be cancelled without loss."""
        await self._reader.read(1)

    async def write(self, *pieces: bytes) -> None:
        """Waits while the other side does not keep up."""
        self._writer.writelines(pieces)
        await self._writer.drain()

    async def finish(self) -> None:
        """No more will be written; TLS cannot say so and goes on."""
        if self._writer.can_write_eof():
            self._writer.write_eof()

    async def close(self, *, linger: bool = False) -> None:
        """In good order. `linger`: the other side may be sending; closed at once, it would be reset and lose our answer."""
        try:
            async with asyncio.timeout(LINGER + SHUTDOWN):
                if linger:
                    await self.finish()
                    async with asyncio.timeout(LINGER):
                        while await self._reader.read(READ):
                            pass
        except (OSError, TimeoutError):
            pass
        self._writer.close()

    def abort(self) -> None:
        """At once; what was not sent is lost, and the other side sees that it is not whole."""
        self._writer.transport.abort()


async def splice(one: Stream, two: Stream) -> None:
    """Copies both ways until both have ended. Half-close travels."""
    copies = [asyncio.ensure_future(_copy(one, two)), asyncio.ensure_future(_copy(two, one))]
    try:
        await asyncio.gather(*copies)
    except OSError:
        pass
    finally:
        for copy in copies:
            copy.cancel()
        await asyncio.gather(*copies, return_exceptions=True)
        one.abort() if not all(_ended(copy) for copy in copies) else await one.close()
        two.abort()


def _ended(copy: "asyncio.Future[None]") -> bool:
    return not copy.cancelled() and copy.exception() is None


async def _copy(source: Stream, sink: Stream) -> None:
    while data := await source.read():
        await sink.write(data)
    await sink.finish()
