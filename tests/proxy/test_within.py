"""What is known of connections that stay on the node, and of how far the others are."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

import pytest

from protos import tunnel_pb2
from services.proxy import peers
from services.proxy.metrics import ProxyCollector
from tests.proxy.conftest import Node, until
from tests.proxy.neighbours import service
from tests.proxy.test_tcp import connect, receive, receive_exactly
from tests.proxy.test_udp import datagram_socket

LoopbackIp = Callable[[], str]


def sample(node: Node, name: str, **labels: str) -> float:
    """As Prometheus would read it."""
    assert node.proxy is not None
    collector = ProxyCollector(node.proxy._counters, lambda: 0, lambda: 0)
    for family in collector.collect():
        for one in family.samples:
            if one.name == f"causeway_proxy_{name}" and one.labels == labels:
                return one.value
    return 0.0


async def test_connections_within_the_node_have_bytes_and_first_bytes(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    node.discovery.put(service("web", ip, ("n", ip, 8080)))
    await node.listening(f"{ip}:80")
    loop = asyncio.get_running_loop()
    with socket.create_server((ip, 8080)) as listening:
        listening.setblocking(False)
        client = await connect(ip)
        client.send(b"x" * 1000)
        async with asyncio.timeout(20):
            backend, _ = await loop.sock_accept(listening)
        assert await receive_exactly(backend, 1000)
    where = {"service": "default/web", "path": "local"}
    assert sample(node, "bytes_total", direction="out", **where) == 1000
    assert sample(node, "first_byte_seconds_count", **where) == 0, "nothing has come yet"
    await asyncio.sleep(0.02)
    backend.send(b"y" * 300)
    assert await receive_exactly(client, 300)
    backend.send(b"y")
    assert await receive(client)
    assert sample(node, "bytes_total", direction="in", **where) == 301
    assert sample(node, "first_byte_seconds_count", **where) == 1
    assert sample(node, "first_byte_seconds_sum", **where) >= 0.02
    assert sample(node, "first_byte_seconds_bucket", le="0.01", **where) == 0
    assert sample(node, "first_byte_seconds_bucket", le="+Inf", **where) == 1
    for one in (client, backend):
        one.close()


async def test_flows_within_the_node_have_them_too(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    node.discovery.put(service("dns", ip, ("n", ip, 5300), port=53, udp=True))
    await node.listening(f"{ip}:53")
    loop = asyncio.get_running_loop()
    with datagram_socket() as client, socket.socket(type=socket.SOCK_DGRAM) as backend:
        backend.setblocking(False)
        backend.bind((ip, 5300))  # not 5353, which mDNS of a test beside may hold
        client.connect((ip, 53))
        for count in (1, 2):
            client.send(b"question")
            async with asyncio.timeout(20):
                _, flow = await loop.sock_recvfrom(backend, 100)
            backend.sendto(b"answer", flow)
            assert await receive(client) == b"answer"
            where = {"service": "default/dns", "path": "local"}
            assert sample(node, "bytes_total", direction="out", **where) == count * 8
            assert sample(node, "bytes_total", direction="in", **where) == count * 6
            assert sample(node, "first_byte_seconds_count", **where) == 1


@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
async def test_round_trips_follow_the_paths(
    node: Node, loopback_ip: LoopbackIp, monkeypatch: pytest.MonkeyPatch, udp: bool
) -> None:
    """A node that was far while it was relayed is near once its path is direct, for services that only have UDP as well."""
    monkeypatch.setattr(peers, "RTT_EVERY", 0.05)
    ip = loopback_ip()
    node.tunnel.status = far_and_near(0.3, 0.1)
    endpoints = [("b", "10.0.0.1", 1), ("c", "10.0.0.2", 1)]
    node.discovery.put(
        service("web", ip, *endpoints, udp=udp, annotations={"causeway/load-balancing": "least-latency"})
    )
    await node.listening(f"{ip}:80")
    await node.settled()

    # A port that is used again at once would be taken for the flow that has just ended: each client keeps its own.
    clients = contextlib.ExitStack()

    async def chosen() -> str:
        if udp:
            clients.enter_context(datagram_socket()).sendto(b"x", (ip, 80))
        else:
            clients.enter_context(await connect(ip))
        asked = await node.tunnel.asked()
        asked.end()
        return asked.open.node

    async def all_at(name: str) -> bool:
        return {await chosen() for _ in range(10)} == {name}

    await until(lambda: all_at("c"), "c is nearer")
    node.tunnel.status = far_and_near(0.005, 0.1)
    await until(lambda: all_at("b"), "b is direct by now")
    clients.close()


def far_and_near(b: float, c: float) -> tunnel_pb2.GetStatusResponse:
    """Sessions with the nodes b and c, and their round trips in seconds."""
    status = tunnel_pb2.GetStatusResponse()
    for peer, rtt in (("b", b), ("c", c)):
        session = status.sessions.add(peer=peer, state="up")
        session.links.add(state="standby").rtt.FromMilliseconds(1)
        session.links.add(state="active").rtt.FromMilliseconds(round(rtt * 1000))
    return status
