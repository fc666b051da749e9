"""Backends that say nothing at all, or fail in other ways, under clients on real sockets: what they cost the others."""

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from protos import tunnel_pb2
from services.proxy.core.catalog import Backend
from services.proxy.core.health import EJECT_AFTER
from services.proxy.core.patience import ATTEMPT, CONNECT
from services.proxy.route import Route
from services.runtime.sockets import reset
from tests.load import Load
from tests.proxy.conftest import Node, until
from tests.proxy.neighbours import Asked, service
from tests.proxy.silent import Silent
from tests.proxy.test_endpoints import ask
from tests.proxy.test_tcp import connect, receive

pytestmark = pytest.mark.slow  # seconds of load

LoopbackIp = Callable[[], str]
RATE = 500  # requests a second
PORTS = (8081, 8082, 8083)
LEAST: dict[str, Any] = {"simple": "LEAST_REQUEST"}


class Servers:
    """Answer each connection with their port."""

    def __init__(self, ip: str) -> None:
        self._ip = ip
        self._servers: dict[int, asyncio.Server] = {}
        self.holding = False
        """A connection lasts as long as its client wants."""

    async def start(self, *ports: int) -> None:
        for port in ports:
            self._servers[port] = await asyncio.start_server(
                lambda *ends, port=port: self._serve(port, *ends), self._ip, port, backlog=512
            )

    def stop(self, port: int) -> None:
        self._servers.pop(port).close()

    def close(self) -> None:
        for port in list(self._servers):
            self.stop(port)

    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            if await reader.read(100):
                writer.write(str(port).encode())
                if self.holding:
                    await reader.read()
        writer.close()


@pytest.fixture
async def ip(node: Node, loopback_ip: LoopbackIp) -> str:
    await node.settled()
    return loopback_ip()


@pytest.fixture
async def servers(ip: str) -> AsyncIterator[Servers]:
    own = Servers(ip)
    yield own
    own.close()


async def serve(node: Node, ip: str, policy: dict[str, Any] | None = None, *, endpoints: Any = PORTS) -> None:
    node.discovery.put(service("web", ip, *[("n", ip, port) for port in endpoints], policy=policy))
    await node.listening(f"{ip}:80")


def route_of(node: Node) -> Route:
    assert node.proxy is not None
    return next(iter(node.proxy._listeners._open.values())).route


def _address(taken: Asked) -> tuple[str, int]:
    ip, _, port = taken.open.target.address.rpartition(":")
    return ip, int(port)


def ejected(node: Node) -> int:
    return node.status().rows[0].ejected


@pytest.mark.parametrize("policy", [None, LEAST], ids=["round-robin", "least-connections"])
async def test_one_of_three_falls_silent_under_500_requests_a_second(
    node: Node, ip: str, servers: Servers, policy: dict[str, Any] | None
) -> None:
    """Time is counted in requests, and by when they began: a busy machine may be late with all of them."""
    await servers.start(*PORTS)
    await serve(node, ip, policy)
    load = Load(lambda: ask(ip), RATE, most=250)
    asking = asyncio.create_task(load.run())
    await until(lambda: len(load.since(0.0)) == 3 and len(load.answers) > 100, "all three answer")
    servers.stop(PORTS[1])
    silent, fell, sent = Silent(ip, PORTS[1]), time.monotonic(), load.sent
    await until(lambda: ejected(node), "it is left out")
    print(f"left out {time.monotonic() - fell:.2f} s after it fell silent, {load.sent - sent} requests later")
    assert load.sent - sent < 3 * RATE  # about 0.6 s where the machine is not busy; 5 s would be 2,500 requests
    await until(lambda: load.since(fell).total() > 700, "the others serve them all, over a trial of the silent one")
    assert load.since(fell).keys() == {PORTS[0], PORTS[2]}

    silent.close()
    await servers.start(PORTS[1])
    returned = time.monotonic()
    await until(lambda: load.since(returned)[PORTS[1]], "it has clients again")
    back = min(when for when, port in load.answers if port == PORTS[1] and when > returned) - returned
    print(f"back {back:.2f} s after its return; the longest request took {load.longest:.2f} s")
    assert back < 5.0
    asking.cancel()
    await load.drain()
    # Those who were in the queue of its socket when that was closed had been accepted.
    assert [failure for failure in load.failures if failure[0] > fell] == []


async def test_a_burst_on_one_backend_that_fell_silent_is_refused_to_nobody(
    node: Node, ip: str, servers: Servers
) -> None:
    """More clients at once than there are retries: who was given up early is owed a whole attempt."""
    await servers.start(PORTS[0])
    silent = [Silent(ip, port) for port in PORTS[1:]]
    await serve(node, ip)
    answers = await asyncio.gather(*(ask(ip) for _ in range(400)))
    assert set(answers) == {PORTS[0]}
    for one in silent:
        one.close()


async def test_with_nobody_else_a_client_has_patience(node: Node, ip: str, servers: Servers) -> None:
    """With one endpoint, and with the last one left: a SYN that is dropped is sent again after a second."""
    silent = Silent(ip, PORTS[0])
    await serve(node, ip, endpoints=PORTS[:1])
    waiting = asyncio.create_task(ask(ip))
    await asyncio.sleep(2 * ATTEMPT)
    assert not waiting.done()
    silent.close()
    with contextlib.suppress(OSError):  # refused where the next SYN comes before the server
        await servers.start(PORTS[0])
        assert await waiting == PORTS[0]


async def test_a_silent_backend_is_found_out_by_clients_without_patience_too(
    node: Node, ip: str, servers: Servers
) -> None:
    await servers.start(PORTS[0])
    silent = Silent(ip, PORTS[1])
    await serve(node, ip, endpoints=PORTS[:2])
    for _ in range(2 * EJECT_AFTER):
        reset(await connect(ip))
    await until(lambda: ejected(node), "it is left out")
    silent.close()


# ── counting ──


async def test_a_burst_is_even_over_those_with_the_fewest_connections(node: Node, ip: str, servers: Servers) -> None:
    """Clients who are on their way count: what is counted at the first answer only sends a whole burst to one."""
    servers.holding = True
    await servers.start(*PORTS)
    await serve(node, ip, LEAST)
    clients = [await hold(ip) for _ in range(6)]
    shares = Counter(port for _, port in clients)
    assert set(shares.values()) == {2}
    route = route_of(node)
    assert set(route.balancer.active.values()) == {2}
    # Those of one backend leave; a burst fills the gap before it goes over all.
    for client, port in clients:
        if port == PORTS[0]:
            client.close()
    await until(lambda: sum(route.balancer.active.values()) == 4, "two are over")
    more = await asyncio.gather(*(hold(ip) for _ in range(5)))
    shares = Counter(port for _, port in more)
    assert shares == {PORTS[0]: 3, PORTS[1]: 1, PORTS[2]: 1}, shares
    for client, _ in (*clients, *more):
        client.close()
    await until(lambda: not route.balancer.active, "all are over")


async def test_a_burst_by_the_tunnel_is_even_before_anybody_was_accepted(node: Node, ip: str) -> None:
    node.discovery.put(service("web", ip, *[("b", f"10.0.0.{i}", 80) for i in range(5)], policy=LEAST))
    await node.listening(f"{ip}:80")
    node.tunnel.mute = True
    clients = [await connect(ip) for _ in range(50)]
    taken = [await node.tunnel.asked() for _ in clients]
    assert set(Counter(one.open.target.address for one in taken).values()) == {10}
    route = route_of(node)
    for one in taken[:25]:
        one.accept()
    for one in taken[25:]:
        one.refuse(tunnel_pb2.REFUSAL_REASON_LIMIT)  # they go on to others, and count there
    again = [await node.tunnel.asked() for _ in range(25)]
    assert sum(route.balancer.active.values()) == 50
    for one in (*taken[:25], *again):
        if one in again:
            one.accept()
        one.end()
    await until(lambda: not route.balancer.active, "all are over")
    for client in clients:
        client.close()


@pytest.mark.parametrize("simple", ["RANDOM", "P2C"])
async def test_real_connections_over_5_endpoints_are_even_within_3_sigma(node: Node, ip: str, simple: str) -> None:
    """Each lives until ten later ones have come: p2c has something to count. 10,000 of them take 15 s, and are as even."""
    node.discovery.put(
        service(
            "web", ip, *[("b", f"10.0.0.{i}", 80) for i in range(5)], annotations={"causeway/load-balancing": simple}
        )
    )
    await node.listening(f"{ip}:80")
    seen: Counter[str] = Counter()
    living = []
    count = 1500
    for _ in range(count):
        client = await connect(ip)
        taken = await node.tunnel.asked()
        seen[taken.open.target.address] += 1
        living.append((client, taken))
        if len(living) > 10:
            client, taken = living.pop(0)
            taken.end()
            client.close()
    sigma = (count * 0.2 * 0.8) ** 0.5
    assert all(abs(seen[f"10.0.0.{i}:80"] - count / 5) < 3 * sigma for i in range(5)), seen
    active = route_of(node).balancer.active
    expected = Counter(Backend("b", *_address(taken)) for _, taken in living) if simple == "P2C" else Counter()
    await until(lambda: active == expected, "who lives counts, where that matters")
    for client, taken in living:
        taken.end()
        client.close()


async def hold(ip: str) -> tuple[socket.socket, int]:
    """A connection that stays, and the port of its backend."""
    client = await connect(ip)
    client.send(b"x")
    return client, int(await receive(client))


# ── nodes ──


async def test_a_node_that_cannot_be_reached_is_left_out_with_all_it_has(node: Node, ip: str) -> None:
    endpoints = [("b", f"10.0.0.{i}", 80) for i in range(20)] + [("c", "10.0.1.1", 80)]
    node.discovery.put(service("web", ip, *endpoints))
    await node.listening(f"{ip}:80")
    node.tunnel.mute = True
    client = await connect(ip)
    for _ in range(EJECT_AFTER):
        asked = await node.tunnel.asked()
        assert (asked.open.node, asked.open.timeout.ToTimedelta().total_seconds()) == ("b", ATTEMPT)
        asked.refuse(tunnel_pb2.REFUSAL_REASON_NO_PATH)
    asked = await node.tunnel.asked()
    assert (asked.open.node, asked.open.timeout.ToTimedelta().total_seconds()) == ("c", CONNECT), "its last attempt"
    asked.accept()
    assert ejected(node) == 20
    assert node.proxy is not None
    assert node.proxy._counters.ejected["default/web"] == 1
    asked.end()
    client.close()
