"""Connections as asyncio streams: clients with or without TLS, the near ends of what goes to backends, and raw copying."""

import asyncio
import socket
import ssl
from collections.abc import Callable

from services.runtime import sockets

READ = 64 * 1024  # bytes a read; the stream's buffers hold at most twice that each way
HANDSHAKE = 10.0  # s for the TLS handshake
SHUTDOWN = 2.0  # s for TLS to close in good order
LINGER = 2.0  # s in which a client may take the answer to what it is still sending
FLUSH = 30.0  # s in which the last of what was written has to be taken


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
        self._closed = False

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

    async def write(self, *pieces: bytes, patience: float | None = None) -> None:
        """Waits while the other side does not keep up, `patience` seconds at most: then TimeoutError, an OSError."""
        self.put(*pieces)
        await self.drained(patience)

    def put(self, *pieces: bytes) -> None:
        """Writes without waiting; `backlog` grows."""
        self._writer.writelines(pieces)

    @property
    def backlog(self) -> int:
        """Bytes written that the kernel has not taken yet."""
        return self._writer.transport.get_write_buffer_size()

    async def drained(self, patience: float | None = None) -> None:
        """Waits until more may be written, as of `write`."""
        if patience is None or not self.backlog:
            await self._writer.drain()
            return
        async with asyncio.timeout(patience):
            await self._writer.drain()

    def finish(self) -> bool:
        """No more will be written. False: TLS can say so only by ending both ways (asyncio's, that is)."""
        if not self._writer.can_write_eof():
            return False
        self._writer.write_eof()
        return True

    async def close(self, *, linger: bool = False) -> None:
        """In good order: what was written is sent. `linger`: the other side may be sending; closed at once, it would be
        reset and lose our answer."""
        try:
            if linger:
                async with asyncio.timeout(LINGER):
                    self.finish()
                    while await self._reader.read(READ):
                        pass
        except (OSError, TimeoutError):
            pass
        self._writer.close()
        try:
            async with asyncio.timeout(FLUSH):
                await self._writer.wait_closed()
            self._closed = True
        except (OSError, TimeoutError):
            self.abort()

    def abort(self) -> None:
        """At once, unless it is closed: what was not sent is lost, and the other side sees a reset, not an end."""
        if self._closed:
            return
        self._closed = True
        sock = self._writer.get_extra_info("socket")
        if sock is not None:
            sockets.reset_on_close(sock)
        self._writer.transport.abort()


async def splice(client: Stream, backend: Stream) -> None:
    """Copies both ways until both have ended. Half-close travels, where there is one; else who has ended ends all."""
    copies = {asyncio.ensure_future(_copy(client, backend)), asyncio.ensure_future(_copy(backend, client))}
    waiting, whole = copies, True
    try:
        while waiting and whole:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            whole = all(copy.exception() is None for copy in done)
            if whole and any(not copy.result() for copy in done):
                break
    except asyncio.CancelledError:
        whole = False
        raise
    finally:
        for copy in copies:
            copy.cancel()
        await asyncio.gather(*copies, return_exceptions=True)
        if whole:
            await client.close()
        client.abort()
        backend.abort()


async def _copy(source: Stream, sink: Stream) -> bool:
    """Until the source ends; whether the sink could be told."""
    while data := await source.read():
        await sink.write(data)
    return sink.finish()
