"""Applications at both ends of a service, that notice every lost, doubled or swapped byte."""

import asyncio
import contextlib
import itertools
import random
import socket
import time
from collections.abc import AsyncIterator

from lab.mesh import Mesh
from lab.place import Place
from tests.patience import PATIENCE
from tests.patience import until as eventually

BLOCK = 64 << 10  # bytes
NOISE = random.Random(0).randbytes(BLOCK - 8)
PORT, TARGET_PORT = 7000, 7001


def make_socket(place: Place, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A non-blocking socket at a place."""
    sock = socket.socket(socket.AF_INET, kind) if place.namespace is None else place.namespace.socket(kind)
    sock.setblocking(False)
    return sock


async def connect(place: Place, address: str, port: int = PORT) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection from a place."""
    sock = make_socket(place)
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return await asyncio.open_connection(sock=sock)


@contextlib.asynccontextmanager
async def echo_server(place: Place, port: int = TARGET_PORT) -> AsyncIterator[None]:
    """Sends back what comes, half-close included."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(256 << 10):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    sock = make_socket(place)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((place.address, port))
    server = await asyncio.start_server(echo, sock=sock)
    async with server:
        yield


def block(number: int) -> bytes:
    """The bulk stream is block(0), block(1), …: no piece of it looks like another."""
    return number.to_bytes(8, "big") + NOISE


class Stream:
    """One connection to the echo service, and what it has seen."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.done = 0
        """Messages that made the round trip."""
        self.stall = 0.0
        """The longest time between two of them, in seconds."""
        self._last = time.monotonic()

    def count(self) -> None:
        """One more."""
        now = time.monotonic()
        self.done += 1
        self.stall = max(self.stall, now - self._last)
        self._last = now

    async def say(self, message: bytes) -> None:
        """One round trip."""
        self.writer.write(message)
        await self.writer.drain()
        assert await self.reader.readexactly(len(message)) == message
        self.count()


@contextlib.asynccontextmanager
async def talk(mesh: Mesh, pause: float = 0.01) -> AsyncIterator[Stream]:
    """A stream on which a asks and b answers all the time, with a pause of so many seconds after each answer. Checks every
    answer, and that nothing is left at the end."""
    stream = Stream(*await connect(mesh.a.place, mesh.cluster_ips[0]))
    ending = False

    async def work() -> None:
        for number in itertools.count():
            if ending:
                return
            await stream.say(b"%064d" % number)
            await asyncio.sleep(pause)

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        try:
            yield stream
        finally:
            ending = True
    stream.writer.write_eof()
    assert await asyncio.wait_for(stream.reader.read(), PATIENCE) == b""
    stream.writer.close()


class Traffic:
    """A bulk, a request/response and an idle stream from a to the echo service at b.

        async with Traffic.through(mesh) as traffic:
            await traffic.flows()
            … whatever happens to the mesh …
            await traffic.flows()

    Leaving the block ends every stream properly and checks that all that was sent came back once, in order.
    """

    def __init__(self, bulk: Stream, chat: Stream, idle: Stream) -> None:
        self.bulk, self.chat, self.idle = bulk, chat, idle
        self._ending = False

    @classmethod
    @contextlib.asynccontextmanager
    async def through(cls, mesh: Mesh) -> AsyncIterator["Traffic"]:
        """Opens the streams, and checks them at the end."""
        streams = []
        try:
            while len(streams) < 3:
                streams.append(Stream(*await connect(mesh.a.place, mesh.cluster_ips[0])))
            traffic = cls(*streams)
            await asyncio.wait_for(traffic.idle.say(b"first"), PATIENCE)
            async with asyncio.TaskGroup() as group:
                sender = group.create_task(traffic._send_bulk())
                group.create_task(traffic._read_bulk(sender))
                group.create_task(traffic._talk())
                try:
                    yield traffic
                finally:
                    traffic._ending = True
            await asyncio.wait_for(traffic.idle.say(b"last"), PATIENCE)
            for stream in (traffic.chat, traffic.idle):
                stream.writer.write_eof()
                assert await asyncio.wait_for(stream.reader.read(), PATIENCE) == b""
        finally:
            for stream in streams:
                stream.writer.close()

    async def flows(self, timeout: float = PATIENCE) -> None:
        """Waits until both moving streams have made progress since now, by more than what may lie in buffers."""
        bulk, chat = self.bulk.done + 1024, self.chat.done + 20

        async def moved() -> bool:
            return self.bulk.done > bulk and self.chat.done > chat

        await eventually(
            moved, f"traffic flows (bulk {self.bulk.done} of {bulk}, chat {self.chat.done} of {chat})", timeout
        )

    async def _send_bulk(self) -> int:
        writer = self.bulk.writer
        for number in itertools.count():
            if self._ending:
                writer.write_eof()
                return number
            writer.write(block(number))
            await writer.drain()
        raise AssertionError

    async def _read_bulk(self, sender: "asyncio.Task[int]") -> None:
        number = 0
        while True:
            try:
                data = await self.bulk.reader.readexactly(BLOCK)
            except asyncio.IncompleteReadError as end:
                assert end.partial == b""
                assert number == await sender, "bytes were lost at the end"
                return
            assert data == block(number), f"block {number} came back different"
            self.bulk.count()
            number += 1

    async def _talk(self) -> None:
        for number in itertools.count():
            if self._ending:
                return
            await self.chat.say(b"%064d" % number)
