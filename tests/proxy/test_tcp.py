"""TCP clients: handed to the tunnel with their socket, or carried within the node."""

import asyncio
import errno
import json
import resource
import socket
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from services.runtime import telemetry
from tests.proxy.conftest import Node, until
from tests.proxy.neighbours import TCP, service

LoopbackIp = Callable[[], str]


async def connect(ip: str, port: int = 80) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    sock.setblocking(False)
    async with asyncio.timeout(20):
        await asyncio.get_running_loop().sock_connect(sock, (ip, port))
    return sock


async def expect_reset(ip: str) -> None:
    """A client that is reset, be it before it knows that it was accepted."""
    with socket.socket() as client, pytest.raises(ConnectionResetError):
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (ip, 80))
        await receive(client)


async def receive(sock: socket.socket, size: int = 65536) -> bytes:
    async with asyncio.timeout(20):
        return await asyncio.get_running_loop().sock_recv(sock, size)


async def receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await receive(sock)
        assert part, f"ended after {len(data)} of {size} bytes"
        data += part
    return data


async def test_a_client_is_handed_over_with_its_socket(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    node.discovery.put(service("web", ip, ("b", "10.0.0.1", 8080)))
    await node.listening(f"{ip}:80")
    client = await connect(ip)
    outbound, taken = await node.tunnel.next()
    assert outbound.node == "b"
    assert (outbound.target.network, outbound.target.address) == (TCP, "10.0.0.1:8080")
    assert outbound.target.service == "default/web"
    host, port = client.getsockname()
    assert outbound.client == f"{host}:{port}"
    assert outbound.traceparent == ""  # nobody asked for traces
    assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    client.send(b"ping")
    assert await receive(taken) == b"ping"
    taken.send(b"pong")
    assert await receive(client) == b"pong"
    taken.close()
    assert await receive(client) == b""  # the proxy holds no copy
    client.close()
    assert node.status().accepted == 1


async def test_endpoints_take_turns_exactly(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    node.discovery.put(service("web", ip, ("b", "10.0.0.1", 1), ("c", "10.0.0.2", 2), ("d", "10.0.0.3", 3)))
    await node.listening(f"{ip}:80")
    clients = [await connect(ip) for _ in range(30)]
    seen: Counter[tuple[str, str]] = Counter()
    for _ in clients:
        outbound, taken = await node.tunnel.next()
        seen[outbound.node, outbound.target.address] += 1
        taken.close()
    assert seen == {("b", "10.0.0.1:1"): 10, ("c", "10.0.0.2:2"): 10, ("d", "10.0.0.3:3"): 10}
    for client in clients:
        client.close()


async def test_listeners_follow_the_services(node: Node, loopback_ip: LoopbackIp) -> None:
    one, two = loopback_ip(), loopback_ip()
    node.discovery.put(service("web", one, ("b", "10.0.0.1", 1)), service("dns", one, udp=True, port=53))
    await node.listening(f"{one}:80", f"{one}:53")
    node.discovery.put(service("web", two, ("c", "10.0.0.2", 2)))
    await node.listening(f"{two}:80", f"{one}:53")
    with pytest.raises(ConnectionRefusedError):
        await connect(one)
    client = await connect(two)
    outbound, taken = await node.tunnel.next()
    assert outbound.node == "c"
    node.discovery.put(service("web", two, ("d", "10.0.0.3", 3)))  # the same listener, another backend
    node.discovery.remove("default/dns")
    await node.listening(f"{two}:80")
    other = await connect(two)
    outbound, taken_other = await node.tunnel.next()
    assert outbound.node == "d"
    client.send(b"still there")  # what was handed over does not care
    assert await receive(taken) == b"still there"
    node.discovery.remove("default/web")
    await node.listening()
    with pytest.raises(ConnectionRefusedError):
        await connect(two)
    for sock in (client, taken, other, taken_other):
        sock.close()


async def test_without_a_ready_endpoint_the_client_is_reset(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    node.discovery.put(service("web", ip, ("b", "10.0.0.1", 1), ready=False))
    await node.listening(f"{ip}:80")
    await expect_reset(ip)
    [row] = node.status().rows
    assert (row.endpoints, row.label) == (0, "default/web:80")


async def test_addresses_of_others_are_reported(node: Node) -> None:
    node.discovery.put(service("web", "192.0.2.1", ("b", "10.0.0.1", 1)))
    [row] = await until(lambda: node.status().rows)
    assert "not a local address" in row.error
    assert str(row.spot) == "192.0.2.1:80"


async def test_a_port_in_use_is_reported_and_had_later(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    other = socket.create_server((ip, 80))
    node.discovery.put(service("web", ip, ("b", "10.0.0.1", 1)))
    [row] = await until(lambda: node.status().rows)
    assert "cannot listen" in row.error and "in use" in row.error
    other.close()
    await node.listening(f"{ip}:80")


async def test_discovery_may_restart(node: Node, loopback_ip: LoopbackIp) -> None:
    kept, gone, new = loopback_ip(), loopback_ip(), loopback_ip()
    node.discovery.put(service("kept", kept, ("b", "10.0.0.1", 1)), service("gone", gone, ("b", "10.0.0.1", 1)))
    await node.listening(f"{kept}:80", f"{gone}:80")
    await node.discovery.stop()
    client = await connect(gone)  # services stay while it is away
    (await node.tunnel.next())[1].close()
    client.close()
    node.discovery.remove("default/gone")
    node.discovery.put(service("new", new, ("b", "10.0.0.1", 1)))
    await node.discovery.start()
    await node.listening(f"{kept}:80", f"{new}:80")


async def test_clients_wait_for_a_tunnel_that_restarts(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    node.discovery.put(service("web", ip, ("b", "10.0.0.1", 1)))
    await node.listening(f"{ip}:80")
    await node.settled()
    early = await connect(ip)
    _, taken = await node.tunnel.next()
    await node.tunnel.stop()
    clients = [await connect(ip) for _ in range(20)]
    for number, client in enumerate(clients):
        client.send(b"%d" % number)
    await until(lambda: node.status().accepted == 21)
    assert any("tunnel is away" in warning for warning in node.status().warnings)
    await node.tunnel.start()
    got = []
    for _ in clients:
        outbound, late = await node.tunnel.next()
        assert outbound.node == "b"
        got.append(int(await receive(late)))
        late.close()
    assert sorted(got) == list(range(20))
    taken.send(b"x")  # a stream that was handed over before lives as long as the tunnel keeps it
    assert await receive(early) == b"x"
    for sock in (early, taken, *clients):
        sock.close()
    await node.settled()


@pytest.mark.slow
async def test_without_a_tunnel_clients_are_reset_in_the_end(
    node: Node, loopback_ip: LoopbackIp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.attach.MAX_WAIT", 0.3)
    ip = loopback_ip()
    node.discovery.put(service("web", ip, ("b", "10.0.0.1", 1)))
    await node.listening(f"{ip}:80")
    await node.tunnel.stop()
    await asyncio.gather(*(expect_reset(ip) for _ in range(3)))
    await node.tunnel.start()


async def test_a_deaf_tunnel_gets_everything_in_the_end(node: Node, loopback_ip: LoopbackIp) -> None:
    """More clients than the socket buffer to the tunnel holds: the rest wait in the proxy."""
    ip = loopback_ip()
    node.discovery.put(service("web", ip, ("b", "10.0.0.1", 1)))
    await node.listening(f"{ip}:80")
    await node.settled()
    node.tunnel.set_deaf(True)
    clients = [await connect(ip) for _ in range(600)]
    await until(lambda: node.status().accepted == 600)
    assert node.proxy is not None and node.proxy._attach.waiting > 0
    node.tunnel.set_deaf(False)
    ports = set()
    for _ in clients:
        outbound, taken = await node.tunnel.next()
        ports.add(int(outbound.client.rpartition(":")[2]))
        taken.close()
    assert ports == {client.getsockname()[1] for client in clients}
    assert node.proxy._attach.waiting == 0
    for client in clients:
        client.close()


async def test_what_waits_is_bounded(node: Node, loopback_ip: LoopbackIp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.proxy.attach.MAX_WAITING", 10)
    ip = loopback_ip()
    node.discovery.put(service("web", ip, ("b", "10.0.0.1", 1)))
    await node.listening(f"{ip}:80")
    await node.tunnel.stop()
    clients = [socket.create_connection((ip, 80)) for _ in range(30)]
    for client in clients:
        client.send(b"\0")
    await until(lambda: node.status().accepted == 30)
    assert node.proxy is not None and node.proxy._attach.waiting == 10
    await until(lambda: not node.proxy or not node.proxy._departure._refusals, "those beyond have been told")
    refused = 0
    for client in clients:
        client.setblocking(False)
        try:
            client.recv(1)
        except ConnectionResetError:
            refused += 1
        except BlockingIOError:
            pass
        client.close()
    assert refused == 20
    await node.tunnel.start()


@pytest.mark.slow
async def test_a_storm_of_clients(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    node.discovery.put(service("web", ip, ("b", "10.0.0.1", 1), ("c", "10.0.0.2", 1)))
    await node.listening(f"{ip}:80")
    await node.settled()
    clients = []
    for _ in range(1500):  # more than BACKLOG, faster than anybody accepts
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex((ip, 80))
        clients.append(client)
    nodes: Counter[str] = Counter()
    for _ in clients:
        outbound, taken = await node.tunnel.next()
        nodes[outbound.node] += 1
        taken.close()
    assert nodes == {"b": 750, "c": 750}
    for client in clients:
        client.close()


async def test_clients_that_reset_before_they_are_taken(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    node.discovery.put(service("web", ip, ("b", "10.0.0.1", 1)))
    await node.listening(f"{ip}:80")
    await node.settled()
    for _ in range(50):
        client = socket.create_connection((ip, 80))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    client = await connect(ip)
    client.send(b"alive")
    while True:
        outbound, taken = await node.tunnel.next()
        if outbound.client.endswith(f":{client.getsockname()[1]}"):
            break
        taken.close()
    assert await receive(taken) == b"alive"
    taken.close()
    client.close()


async def test_without_descriptors_clients_wait_in_the_backlog(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    node.discovery.put(service("web", ip, ("b", "10.0.0.1", 1)))
    await node.listening(f"{ip}:80")
    await node.settled()
    client = socket.socket()
    client.setblocking(False)
    probe = socket.socket()
    used = probe.fileno()
    probe.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    try:
        with pytest.raises(OSError) as caught:
            socket.socket()
        assert caught.value.errno == errno.EMFILE
        assert client.connect_ex((ip, 80)) in (0, errno.EINPROGRESS)
        await asyncio.sleep(0.5)
        assert node.status().accepted == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    _, taken = await node.tunnel.next()
    taken.close()
    client.close()


# ── within the node ──


async def test_a_service_of_this_node_is_reached_directly(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    backend = socket.create_server((ip, 8080))
    backend.setblocking(False)
    node.discovery.put(service("web", ip, ("n", ip, 8080)))
    await node.listening(f"{ip}:80")
    client = await connect(ip)
    async with asyncio.timeout(20):
        served, _ = await asyncio.get_running_loop().sock_accept(backend)
    client.send(b"question")
    assert await receive(served) == b"question"
    client.shutdown(socket.SHUT_WR)
    assert await receive(served) == b""  # the end of the request travels, …
    answer = bytes(range(256)) * 16384  # 4 MiB: more than the sockets hold
    sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(served, answer))
    assert await receive_exactly(client, len(answer)) == answer  # … and the answer still arrives
    await sending
    served.close()
    assert await receive(client) == b""
    assert node.status().dialled == 1
    assert node.proxy is not None
    departure = node.proxy._departure
    await until(lambda: not departure._pumps, "the pump has ended")
    for sock in (client, backend):
        sock.close()


async def test_a_reset_within_the_node_travels(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    backend = socket.create_server((ip, 8080))
    backend.setblocking(False)
    node.discovery.put(service("web", ip, ("n", ip, 8080)))
    await node.listening(f"{ip}:80")
    for client_breaks in (True, False):
        client = await connect(ip)
        async with asyncio.timeout(20):
            served, _ = await asyncio.get_running_loop().sock_accept(backend)
        broken, other = (client, served) if client_breaks else (served, client)
        broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        broken.close()
        with pytest.raises(ConnectionResetError):
            await receive(other)
        other.close()
    backend.close()


async def test_a_backend_of_this_node_that_is_down(node: Node, loopback_ip: LoopbackIp) -> None:
    ip = loopback_ip()
    node.discovery.put(service("web", ip, ("n", ip, 8080)))
    await node.listening(f"{ip}:80")
    await expect_reset(ip)
    assert node.status().dialled == 0


async def test_one_span_covers_all_attempts(
    node: Node, loopback_ip: LoopbackIp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "spans.jsonl"
    monkeypatch.setenv("CAUSEWAY_TRACE_FILE", str(file))
    telemetry.set_up("proxy", "n")
    ip = loopback_ip()
    try:
        with socket.create_server((ip, 8081)) as backend:
            backend.setblocking(False)
            node.discovery.put(service("web", ip, ("n", ip, 8080), ("n", ip, 8081)))
            await node.listening(f"{ip}:80")
            for _ in range(2):  # one of them meets the dead backend first
                client = await connect(ip)
                async with asyncio.timeout(20):
                    served, _ = await asyncio.get_running_loop().sock_accept(backend)
                served.close()
                client.close()
            assert node.proxy is not None
            counters = node.proxy._counters
            await until(lambda: counters.retried["default/web"] == 1, "one was sent on")
    finally:
        telemetry.shut_down()
    spans = [json.loads(line) for line in file.read_text().splitlines()]
    assert [span["name"] for span in spans] == ["proxy.accept"] * 2
    assert len({span["trace"] for span in spans}) == 2
