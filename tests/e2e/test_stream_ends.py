"""FAILURES 30: ends of connections, through both proxies and tunnels, between an application and its backend.

Of a connection whose other end vanished without a word see tests/proxy/test_half_open.py.
"""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e.many import crowd
from tests.e2e.scale import HELD_PORT, HELD_TARGET, MIB, Two
from tests.tunnel.local import receive, receive_all, reset, send, was_reset

pytestmark = pytest.mark.slow

NOISE = random.Random(30).randbytes(4 << 20)
HELD = 24 * MIB  # bytes; what a stream may hold at one node while nobody reads it, and allocators
WHERE = ("another node", "the same node")


@pytest.fixture
def backend(two_nodes: Two) -> Iterator[socket.socket]:
    with socket.create_server((two_nodes.b.place.address, HELD_TARGET), backlog=64) as server:
        server.setblocking(False)
        yield server


@contextlib.asynccontextmanager
async def connection(
    two_nodes: Two, backend: socket.socket, where: str
) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """A client's socket and the backend's."""
    ip, _ = two_nodes.addresses[WHERE.index(where)]
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        async with asyncio.timeout(60):
            await loop.sock_connect(client, (ip, HELD_PORT))
            served, _ = await loop.sock_accept(backend)
        with served:
            yield client, served


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("who", ["client", "backend"])
async def test_half_close(two_nodes: Two, backend: socket.socket, where: str, who: str) -> None:
    async with connection(two_nodes, backend, where) as pair:
        first, second = pair if who == "client" else reversed(pair)
        receiving = asyncio.create_task(receive_all(second))
        await send(first, NOISE)
        first.shutdown(socket.SHUT_WR)
        assert await receiving == NOISE
        # The other direction is as open as before, for small and for large things.
        await send(second, b"still")
        assert await receive(first, 5) == b"still"
        receiving = asyncio.create_task(receive_all(first))
        await send(second, NOISE)
        second.close()
        assert await receiving == NOISE


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("who", ["client", "backend"])
async def test_a_reset_travels(two_nodes: Two, backend: socket.socket, where: str, who: str) -> None:
    async with connection(two_nodes, backend, where) as pair:
        first, second = pair if who == "client" else reversed(pair)
        await send(first, b"hello")
        assert await receive(second, 5) == b"hello"
        reset(first)
        assert await was_reset(second)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("who", ["client", "backend"])
async def test_one_that_does_not_read(two_nodes: Two, backend: socket.socket, where: str, who: str) -> None:
    """Its sender waits, with little memory used on both nodes; others do not notice, and nothing is lost."""
    before = two_nodes.uses()
    async with connection(two_nodes, backend, where) as pair:
        sender, sleeper = pair if who == "backend" else reversed(pair)
        content = NOISE * 16  # 64 MiB: more than buffers hold
        sending = asyncio.create_task(send(sender, content))
        await asyncio.sleep(1)
        assert not sending.done()
        with crowd(two_nodes.addresses[WHERE.index(where)]) as others:
            await asyncio.to_thread(others.grow, 20)
            assert await asyncio.to_thread(others.talk) == 20
        for name, use in two_nodes.uses().items():
            assert use.memory <= before[name].memory + HELD, f"{name}: {before[name]} became {use}"
        assert await receive(sleeper, len(content)) == content
        await sending
    await two_nodes.quiet()


@pytest.mark.parametrize("who", ["client", "backend"])
async def test_gone_while_the_other_end_sends(two_nodes: Two, backend: socket.socket, who: str) -> None:
    """What nobody will read does not keep the stream."""
    async with connection(two_nodes, backend, WHERE[0]) as pair:
        gone, sender = pair if who == "client" else reversed(pair)
        sending = asyncio.create_task(send(sender, NOISE * 16))
        await receive(gone, 1000)
        gone.close()  # with unread bytes: a reset
        with pytest.raises(OSError):
            await sending
    await two_nodes.quiet()
