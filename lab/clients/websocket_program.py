"""`python -m lab.clients.websocket_program serve HOST PORT` and `… call HOST PORT MESSAGES`."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed

from lab.clients.case import expect
from lab.clients.program import attempt

LARGE = 16 << 20  # bytes
PATIENCE = 90.0  # seconds
ENDED = "how did the last one end"


class Server:
    """Says back what it hears; "close CODE REASON" makes it close, "ping" makes it ping and tell that it was answered,
    ENDED makes it tell how the connection before ended."""

    def __init__(self) -> None:
        self._last = ""

    async def handle(self, connection: ServerConnection) -> None:
        try:
            async for message in connection:
                await self._hear(connection, message)
        except ConnectionClosed:
            pass  # with a code that is no plain end
        finally:
            self._last = f"{connection.close_code} {connection.close_reason}"

    async def _hear(self, connection: ServerConnection, message: str | bytes) -> None:
        if message == ENDED:
            await connection.send(self._last)
        elif message == "ping":
            await (await connection.ping())
            await connection.send("pong came")
        elif isinstance(message, str) and message.startswith("close "):
            _, code, reason = message.split(" ", 2)
            await connection.close(int(code), reason)
        else:
            await connection.send(message)


async def serve(host: str, port: int) -> None:
    async with listen(Server().handle, host, port, max_size=2 * LARGE) as server:
        await server.serve_forever()


class Calls:
    """What is tried, one method each."""

    def __init__(self, url: str, messages: int) -> None:
        self._url = url
        self._messages = messages

    def _connect(self) -> connect:
        return connect(self._url, max_size=2 * LARGE, open_timeout=PATIENCE, close_timeout=PATIENCE, proxy=None)

    async def echo(self) -> str:
        async with self._connect() as connection:
            start = time.monotonic()
            for number, binary in zip(range(self._messages), itertools.cycle((False, True))):
                text = f"message {number} – é"
                message = text.encode() if binary else text
                await connection.send(message)
                expect(await connection.recv() == message, f"another message than {number}")
            return f"{1e3 * (time.monotonic() - start) / self._messages:.0f} ms a turn"

    async def pings(self) -> str:
        async with self._connect() as connection:
            seconds = await asyncio.wait_for(await connection.ping(), PATIENCE)
            await connection.send("ping")
            expect(await asyncio.wait_for(connection.recv(), PATIENCE) == "pong came", "another answer")
            return f"{1e3 * seconds:.0f} ms"

    async def large(self) -> str:
        message = bytes(range(256)) * (LARGE // 256)
        async with self._connect() as connection:
            start = time.monotonic()
            await connection.send(message)
            expect(await asyncio.wait_for(connection.recv(), PATIENCE) == message, "another message")
            return f"{2 * LARGE / (1 << 20) / (time.monotonic() - start):.1f} MiB/s"

    async def fragments(self) -> str:
        async with self._connect() as connection:
            await connection.send("piece " for _ in range(100))
            expect(await asyncio.wait_for(connection.recv(), PATIENCE) == "piece " * 100, "another message")
            return "100 in a message"

    async def closed_by_client(self) -> str:
        async with self._connect() as connection:
            await connection.close(4001, "client is done")
        async with self._connect() as connection:
            until = time.monotonic() + PATIENCE
            while True:
                await connection.send(ENDED)
                if (said := await connection.recv()) == "4001 client is done":
                    return str(said)
                expect(time.monotonic() < until, f"the server saw {said!r}")
                await asyncio.sleep(0.05)

    async def closed_by_server(self) -> str:
        async with self._connect() as connection:
            await connection.send("close 4002 server is done")
            return await self._end(connection)

    @staticmethod
    async def _end(connection: ClientConnection) -> str:
        try:
            await asyncio.wait_for(connection.recv(), PATIENCE)
        except ConnectionClosed as end:
            said = f"{end.rcvd.code} {end.rcvd.reason}" if end.rcvd is not None else "no close frame"
            expect(said == "4002 server is done", said)
            return said
        raise AssertionError("a message instead of the end")


async def call(host: str, port: int, messages: int) -> None:
    tried = Calls(f"ws://{host}:{port}/", messages)
    await attempt("messages", tried.echo)
    await attempt("pings both ways", tried.pings)
    await attempt("16 MiB", tried.large)
    await attempt("fragments", tried.fragments)
    await attempt("closed by the client", tried.closed_by_client)
    await attempt("closed by the server", tried.closed_by_server)


if __name__ == "__main__":
    address = sys.argv[2], int(sys.argv[3])
    asyncio.run(serve(*address) if sys.argv[1] == "serve" else call(*address, int(sys.argv[4])))
