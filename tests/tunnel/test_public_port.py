"""Hostile input on the public port: it costs its sender a connection, and nobody else anything."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator

import pytest

from services.runtime import config
from services.runtime.identity import Identity
from services.runtime.tls import TlsEndpoint
from services.tunnel import handshake
from services.tunnel.config import HANDSHAKE_TIMEOUT, MAX_HALF_OPEN
from services.tunnel.core.link import DIRECT
from services.tunnel.core.packets import HEADER, HEADER_SIZE, JOIN, JOINED, UNKNOWN
from services.tunnel.handshake import Greeting
from services.tunnel.keys import JOIN_SIZE, SessionKeys
from tests.tunnel.conftest import Nodes
from tests.tunnel.local import PATIENCE, descriptors, receive, rss, send, until

pytestmark = pytest.mark.slow  # real processes: time limits of seconds

PORT = 20006


async def knock(nodes: Nodes) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    async with asyncio.timeout(PATIENCE):
        await asyncio.get_running_loop().sock_connect(sock, (nodes.b.place.address, PORT))
    return sock


async def is_closed(sock: socket.socket) -> bool:
    """Waits until the other end closes; what it said before does not count."""
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(PATIENCE):
            while await asyncio.get_running_loop().sock_recv(sock, 65536):
                pass
    sock.close()
    return True


@pytest.fixture(autouse=True)
async def honest_peers_are_served(nodes: Nodes) -> AsyncIterator[None]:
    """The process lives, has no unhandled error in its log, and no descriptor too many."""
    pid = nodes.b.pid("tunnel")
    before = descriptors(pid)
    yield
    assert nodes.b.running("tunnel")
    await nodes.a.ping("b")
    assert "Traceback" not in nodes.b.log("tunnel").read_text()
    await until(lambda: descriptors(pid) <= before + 5, "connections are given up")


def hello(nodes: Nodes) -> bytes:
    """A ClientHello."""
    node = nodes.make("visitor")
    return TlsEndpoint(Identity.load(config.load(node.config_file)), server=False).data_to_send()


def join(body: bytes = bytes(JOIN_SIZE), kind: int = JOIN, length: int = JOIN_SIZE) -> bytes:
    return HEADER.pack(kind, 0, 0, length, 0) + body


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeros": bytes(1000),
    "ones": b"\xff" * 1000,
    "oversized packet": join(bytes(100), length=0xFFFFFFFF),
    "short join": join(bytes(10), length=10),
    "long join": join(bytes(65536), length=65536),
    "another kind": join(kind=5),
    "a record": HEADER.pack(5, 0, 0, 100, 0) + bytes(100),
    "tls, too long a record": b"\x16\x03\x01\xff\xff" + bytes(70_000),
    "tls, not a hello": b"\x16\x03\x01\x00\x05hello",
    "tls alert": b"\x15\x03\x01\x00\x02\x02\x28",
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_is_closed_at_once(nodes: Nodes, what: str) -> None:
    sock = await knock(nodes)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        await send(sock, GARBAGE[what])
    assert await is_closed(sock)


async def test_random_garbage(nodes: Nodes) -> None:
    dice = random.Random(11)
    good = hello(nodes)
    for number in range(100):
        spoilt = bytearray(good)
        for _ in range(dice.randint(1, 5)):
            spoilt[dice.randrange(len(spoilt))] = dice.randrange(256)
        sock = await knock(nodes)
        await send(sock, [bytes(spoilt), dice.randbytes(dice.randint(1, 200)), good + dice.randbytes(50)][number % 3])
        sock.close()


async def test_truncated_at_every_byte_of_a_join(nodes: Nodes) -> None:
    for size in range(0, len(join()), 3):
        sock = await knock(nodes)
        await send(sock, join()[:size])
        sock.shutdown(socket.SHUT_WR)
        assert await is_closed(sock)


async def test_slow_drip_is_closed_in_bounded_time(nodes: Nodes) -> None:
    """A byte now and then does not prolong the time that a stranger gets."""

    async def drip(data: bytes) -> None:
        sock = await knock(nodes)
        loop = asyncio.get_running_loop()
        ended = asyncio.create_task(is_closed(sock))
        began = loop.time()
        with contextlib.suppress(OSError):
            for byte in data:
                if ended.done():
                    break
                await loop.sock_sendall(sock, bytes([byte]))
                await asyncio.wait([ended], timeout=1.0)
        assert ended.done() and loop.time() - began < len(data), "it was closed before its last byte"
        await ended

    await asyncio.gather(drip(hello(nodes)), drip(join()), drip(b"\x02"[:1] + bytes(79)))


async def test_a_join_of_an_unknown_session_is_told_so(nodes: Nodes) -> None:
    keys = SessionKeys(random.Random(1).randbytes(32), initiator=True)
    sock = await knock(nodes)
    await send(sock, join(keys.join(DIRECT, bytes(16))))
    assert HEADER.unpack(await receive(sock, HEADER_SIZE))[0] == UNKNOWN
    assert await is_closed(sock)


class Session:
    """A session with b, made by this process."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.node = nodes.make("visitor")

    async def start(self) -> None:
        self.sock = await knock(self.nodes)
        identity = Identity.load(config.load(self.node.config_file))
        greeting = Greeting("lab", "visitor", "0123")
        new = await handshake.initiate(self.sock, identity, "b", greeting, HANDSHAKE_TIMEOUT)
        self.keys = new.keys

    async def links(self) -> int:
        return sum(len(it.links) for it in (await self.nodes.b.tunnel()).sessions if it.peer == "visitor")


async def test_a_join_that_is_repeated_adds_no_lasting_links(nodes: Nodes) -> None:
    session = Session(nodes)
    await session.start()
    recorded = join(session.keys.join(DIRECT, bytes(16)))
    held = []
    for _ in range(100):
        sock = await knock(nodes)
        await send(sock, recorded)
        with contextlib.suppress(ConnectionResetError):
            header = await receive(sock, HEADER_SIZE)
            assert not header or HEADER.unpack(header)[0] in (JOINED, UNKNOWN)
        held.append(sock)
    assert await session.links() <= 20
    for sock in held:
        assert await is_closed(sock), "although nobody closed it on this side"
    session.sock.close()


async def test_a_session_that_says_nothing_more_costs_no_link(nodes: Nodes) -> None:
    session = Session(nodes)
    await session.start()
    assert await session.links() == 1
    assert await is_closed(session.sock)

    async def gone() -> bool:
        return await session.links() == 0

    await until(gone, "the mute link is closed")


async def test_garbage_on_a_link(nodes: Nodes) -> None:
    for data in (
        bytes(100),
        b"\xff" * 100,
        HEADER.pack(6, 0, 0, 100, 0) + bytes(100),
        random.Random(2).randbytes(5000),
    ):
        session = Session(nodes)
        await session.start()
        await send(session.sock, data)
        assert await is_closed(session.sock)


async def test_two_thousand_half_open_connections(nodes: Nodes) -> None:
    """Memory and descriptors stay bounded, and a peer who proves himself gets in."""
    pid = nodes.b.pid("tunnel")
    before, files = rss(pid), descriptors(pid)
    good = hello(nodes)
    held: list[socket.socket] = []
    for number in range(2000):
        sock = await knock(nodes)
        held.append(sock)
        await send(sock, (b"", b"\x02", good[:100], join()[:-1])[number % 4])
        if number % 400 == 399:
            assert descriptors(pid) - files < MAX_HALF_OPEN + 100
    assert rss(pid) - before < 40 << 20
    session = Session(nodes)
    await session.start()
    assert await session.links() == 1
    session.sock.close()
    await nodes.a.ping("b")
    for sock in held:
        sock.close()
    await until(lambda: descriptors(pid) - files < 50, "the flood is forgotten")
