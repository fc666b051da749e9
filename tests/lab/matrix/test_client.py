"""The client process against real servers that are honest, or are not."""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

import pytest

from lab.child import Child
from lab.matrix.flow import BULK, IDLE, REQUEST, TCP, UDP, Finding

pytestmark = pytest.mark.slow

Spoil = Callable[[bytes], bytes]


class Server:
    """Echoes on a free port. From the moment of `spoil` on, what `change` does with the next large piece comes back."""

    def __init__(self) -> None:
        self.change: Callable[[bytes], bytes | None] | None = None
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(256 << 10):
                # Bulk only: pieces of requests are smaller.
                if self.change is not None and len(data) >= 1000:
                    changed, self.change = self.change(data), None
                    if changed is None:
                        writer.transport.abort()
                        return
                    data = changed
                writer.write(data)
            writer.write_eof()
        except ConnectionError:
            pass
        finally:
            writer.close()


class Mirror(asyncio.DatagramProtocol):
    def connection_made(self, transport: object) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)  # type: ignore[attr-defined]


async def conversation(server: Server, talk: Callable[[Child], Awaitable[None]]) -> dict[tuple[str, str], Finding]:
    """Starts server and client, lets `talk` do something, and returns the client's findings."""
    loop = asyncio.get_running_loop()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        transport, _ = await loop.create_datagram_endpoint(Mirror, local_addr=("127.0.0.1", port))
        argv = ["127.0.0.1", str(port), "2000000", IDLE, REQUEST, BULK]
        client = Child([sys.executable, "-m", "lab.matrix.client", *argv], output=None)
        try:
            assert await ask(client) == {"ready": True}
            since = time.monotonic()
            await talk(client)
            assert await ask(client, "use") == {}
            await asyncio.sleep(0.3)
            found = [Finding(**it) for it in await ask(client, f"finish {since}")]
        finally:
            client.kill()
            transport.close()
    return {(it.protocol, it.load): it for it in found}


async def ask(client: Child, words: str = "") -> object:
    if words:
        client.stdin.write(words.encode() + b"\n")
        client.stdin.flush()
    return json.loads(await asyncio.to_thread(client.stdout.readline))


async def test_an_honest_server_does_no_harm() -> None:
    async def talk(client: Child) -> None:
        await asyncio.sleep(0.5)
        for _ in range(100):  # on a busy machine it may be behind for a while
            if await ask(client, "flows") == {"flows": True}:
                return
        raise AssertionError("it never flows")

    found = await conversation(Server(), talk)
    assert len(found) == 6
    assert all(it.intact and not it.broken and it.stall is not None for it in found.values())
    assert found[TCP, BULK].sent > 10_000
    assert found[TCP, IDLE].sent == 4 * 64
    assert found[UDP, REQUEST].sent >= 3 * 64


async def test_a_stall_is_measured() -> None:
    server = Server()

    async def talk(_: Child) -> None:
        server.change = lambda data: time.sleep(0.6) or data  # nobody is served meanwhile
        await asyncio.sleep(1.5)

    found = await conversation(server, talk)
    for column in ((TCP, REQUEST), (TCP, BULK), (UDP, REQUEST), (UDP, BULK)):
        stall = found[column].stall
        assert stall is not None
        assert stall > 0.5
    assert all(it.intact for it in found.values())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda data: data[:300] + data[400:], "lost"),
        (lambda data: data[1000:], "lost"),
        (lambda data: data + data[-1000:], "repeated"),
        (lambda data: data[:500] + b"!" + data[501:], "foreign"),
    ],
    ids=["a part of a block", "a block", "doubled", "changed"],
)
async def test_harm_to_one_stream_is_found_there_and_nowhere_else(change: Spoil, field: str) -> None:
    server = Server()

    async def talk(_: Child) -> None:
        server.change = change
        await asyncio.sleep(0.5)

    found = await conversation(server, talk)
    bulk = found.pop((TCP, BULK))
    assert getattr(bulk, field) > 0
    assert not bulk.intact
    assert all(it.intact for it in found.values())


async def test_a_reset_is_found() -> None:
    server = Server()

    async def talk(_: Child) -> None:
        server.change = lambda data: None
        await asyncio.sleep(0.5)

    found = await conversation(server, talk)
    bulk = found.pop((TCP, BULK))
    assert bulk.broken
    assert bulk.stall is None
    assert not bulk.intact
    assert all(it.intact for it in found.values())
