"""Clients spread over real backends on real sockets, some of which die: what no backend has accepted does not fail."""

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from protos import tunnel_pb2
from services.proxy.core.health import EJECT_AFTER
from tests.load import Load
from tests.proxy.conftest import Node, until
from tests.proxy.neighbours import service
from tests.proxy.test_tcp import connect, receive

pytestmark = pytest.mark.slow  # seconds of load

LoopbackIp = Callable[[], str]
RATE = 500  # requests a second
PORTS = (8081, 8082, 8083)


class Backends:
    """Servers on this node that answer each connection with their port, once it has said something."""

    def __init__(self, ip: str) -> None:
        self._ip = ip
        self._servers: dict[int, tuple[asyncio.Server, socket.socket]] = {}
        self.breaks = False  # instead of answering

    async def start(self, port: int) -> None:
        listening = socket.create_server((self._ip, port), backlog=512)
        server = await asyncio.start_server(lambda *ends: self._serve(port, *ends), sock=listening.dup())
        self._servers[port] = server, listening

    async def stop(self, port: int) -> None:
        """Who has been accepted by the kernel is served: it may have sent something, and is not what is tested here."""
        server, listening = self._servers.pop(port)
        listening.setblocking(False)
        accepted = []
        with contextlib.suppress(BlockingIOError):
            while True:
                accepted.append(listening.accept()[0])
        server.close()
        listening.close()
        for one in accepted:
            await self._serve(port, *await asyncio.open_connection(sock=one))

    def close(self) -> None:
        for server, listening in self._servers.values():
            server.close()
            listening.close()

    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            if await reader.read(100):
                if self.breaks:
                    writer.transport.abort()
                    return
                writer.write(str(port).encode())
        writer.close()


@pytest.fixture
async def ip(node: Node, loopback_ip: LoopbackIp) -> str:
    """Where a service with three backends on this node is served."""
    own = loopback_ip()
    node.discovery.put(service("web", own, *[("n", own, port) for port in PORTS]))
    await node.listening(f"{own}:80")
    await node.settled()
    return own


@pytest.fixture
async def backends(ip: str) -> AsyncIterator[Backends]:
    own = Backends(ip)
    for port in PORTS:
        await own.start(port)
    yield own
    own.close()


async def ask(ip: str) -> int:
    """One request; which backend answered."""
    reader, writer = await asyncio.open_connection(ip, 80)
    writer.write(b"x")
    answer = await reader.read()
    writer.close()
    return int(answer)


async def test_one_of_three_dies_under_500_requests_a_second_and_returns(
    node: Node, ip: str, backends: Backends
) -> None:
    """Time is counted in requests, and by when they began: a busy machine may be late with all of them."""
    load = Load(lambda: ask(ip), RATE)
    asking = asyncio.create_task(load.run())

    def ejected() -> int:
        return node.status().rows[0].ejected

    await until(lambda: len(load.since(0.0)) == 3 and len(load.answers) > 200, "all three answer")
    await backends.stop(PORTS[1])
    died, sent = time.monotonic(), load.sent
    await until(ejected, "it is left out")
    assert load.sent - sent < RATE  # within a second
    await until(lambda: load.since(died).total() > 600, "the others serve them all")  # beyond its first pause of 1 s
    assert load.since(died).keys() == {PORTS[0], PORTS[2]}

    await backends.start(PORTS[1])
    returned = time.monotonic()
    await until(lambda: load.since(returned)[PORTS[1]], "it has clients again")
    assert min(when for when, port in load.answers if port == PORTS[1] and when > returned) - returned < 5.0
    await until(lambda: not ejected(), "nobody is left out")
    asking.cancel()
    await load.drain()
    assert load.failures == []


async def test_in_turn_over_five_by_real_connections(node: Node, loopback_ip: LoopbackIp) -> None:
    own = loopback_ip()
    node.discovery.put(service("five", own, *[("b", f"10.0.0.{i}", 80) for i in range(5)]))
    await node.listening(f"{own}:80")
    seen: Counter[str] = Counter()
    for _ in range(10):
        clients = [await connect(own) for _ in range(51)]
        for client in clients:
            outbound, taken = await node.tunnel.next()
            seen[outbound.target.address] += 1
            taken.close()
            client.close()
    assert len(seen) == 5
    assert max(seen.values()) - min(seen.values()) <= 1


async def test_f33_a_source_address_sticks_across_ports(node: Node, loopback_ip: LoopbackIp) -> None:
    own = loopback_ip()
    policy = {"consistentHash": {"useSourceIp": True}}
    node.discovery.put(service("five", own, *[("b", f"10.0.0.{i}", 80) for i in range(5)], policy=policy))
    await node.listening(f"{own}:80")
    chosen: dict[str, set[str]] = {loopback_ip(): set() for _ in range(30)}
    for _ in range(5):
        for source, seen in chosen.items():
            with socket.socket() as client:
                client.bind((source, 0))
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, (own, 80))
                outbound, taken = await node.tunnel.next()
                seen.add(outbound.target.address)
                taken.close()
    assert all(len(seen) == 1 for seen in chosen.values())
    assert len(set.union(*chosen.values())) > 2


@pytest.mark.parametrize(("reason", "ejected"), [("LIMIT", 0), ("UNREACHABLE", 2)])
async def test_a_node_at_its_limit_says_nothing_of_its_backends(
    node: Node, loopback_ip: LoopbackIp, reason: str, ejected: int
) -> None:
    own = loopback_ip()
    node.discovery.put(service("web", own, ("b", "10.0.0.1", 80), ("c", "10.0.0.2", 80)))
    await node.listening(f"{own}:80")
    number = tunnel_pb2.RefusalReason.Value(f"REFUSAL_REASON_{reason}")
    node.tunnel.refusal = tunnel_pb2.Refusal(reason=number, message="no")
    for _ in range(EJECT_AFTER):
        client = await connect(own)
        client.send(b"no HTTP\n")
        with pytest.raises(ConnectionResetError):
            await receive(client)
        client.close()
    assert node.proxy is not None
    assert node.proxy._counters.retried["default/web"] == EJECT_AFTER, "the other one may have room"
    assert node.status().rows[0].ejected == ejected


async def test_what_was_sent_upstream_is_not_sent_again(node: Node, ip: str, backends: Backends) -> None:
    """Whether that would be right only the application knows."""
    backends.breaks = True
    for _ in range(6):
        client = await connect(ip)
        client.send(b"x")
        with contextlib.suppress(ConnectionResetError):
            assert await receive(client) == b""
        client.close()
    assert node.proxy is not None
    assert not node.proxy._counters.retried
    assert node.status().rows[0].ejected == 0
