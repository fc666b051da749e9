"""Streams of other nodes: judged, dialled, handed to the tunnel."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest
import yaml

from protos import tunnel_pb2
from services.proxy.core.patience import ATTEMPT, CONNECT
from tests.proxy.conftest import Node, until
from tests.proxy.neighbours import UDP, service
from tests.proxy.silent import Silent

LoopbackIp = Callable[[], str]


async def receive(sock: socket.socket) -> bytes:
    async with asyncio.timeout(20):
        return await asyncio.get_running_loop().sock_recv(sock, 65536)


@pytest.fixture
async def ip(node: Node, loopback_ip: LoopbackIp) -> AsyncIterator[str]:
    """An address of this node, whose ports 8080 (TCP) and 5454 (UDP) are endpoints of headless services; nobody
    listens there yet. Not ready: they are this node's all the same."""
    address = loopback_ip()
    node.discovery.put(
        service("web", "", ("n", address, 8080), ready=False),
        service("dns", "", ("n", address, 5454), udp=True),
        service("far", loopback_ip(), ("b", address, 9090)),
    )
    await until(lambda: node.proxy is not None and node.proxy._policy.judge("tcp", f"{address}:8080", "a").allowed)
    await node.settled()
    yield address


async def test_an_endpoint_of_this_node_is_dialled(node: Node, ip: str) -> None:
    backend = socket.create_server((ip, 8080))
    answer, sock = await node.tunnel.offer(f"{ip}:8080", service="default/anything")
    assert isinstance(answer, tunnel_pb2.Accept) and sock is not None
    served, _ = backend.accept()
    served.setblocking(False)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    sock.send(b"question")
    assert await receive(served) == b"question"
    served.send(b"answer")
    assert await receive(sock) == b"answer"
    sock.close()
    assert await receive(served) == b""  # the proxy holds no copy
    assert node.status().dialled == 1
    assert node.proxy is not None
    assert dict(node.proxy._counters.dialled) == {"default/web": 1}  # not what the other node called it
    served.close()
    backend.close()


async def test_a_pod_is_dialled_by_its_name(node: Node, ip: str, loopback_ip: LoopbackIp) -> None:
    backend = socket.create_server((loopback_ip(), 0))
    address, port = backend.getsockname()
    own = service("db", "", ("n", address, port))
    own.endpoints[0].pod = "db-0"
    node.discovery.put(own)
    await until(lambda: node.proxy is not None and node.proxy._policy.judge("tcp", f"db-0:{port}", "a").allowed)
    answer, sock = await node.tunnel.offer(f"db-0:{port}")
    assert isinstance(answer, tunnel_pb2.Accept) and sock is not None
    assert answer.service == "default/db" and sock.getpeername() == (address, port)
    sock.close()
    backend.close()


async def test_a_datagram_endpoint_is_dialled(node: Node, ip: str) -> None:
    backend = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    backend.bind((ip, 5454))
    answer, sock = await node.tunnel.offer(f"{ip}:5454", UDP)
    assert isinstance(answer, tunnel_pb2.Accept) and sock is not None
    assert sock.type == socket.SOCK_DGRAM
    sock.send(b"query")
    assert await receive(backend) == b"query"
    backend.sendto(b"answer", sock.getsockname())
    assert await receive(sock) == b"answer"
    sock.close()
    backend.close()


async def test_policy_refuses_what_is_not_listed(node: Node, ip: str) -> None:
    backend = socket.create_server((ip, 9090))
    for address, network in [
        (f"{ip}:9090", tunnel_pb2.NETWORK_TCP),  # an endpoint of another node
        (f"{ip}:8080", tunnel_pb2.NETWORK_UDP),
        (f"{ip}:8080", tunnel_pb2.NETWORK_UNSPECIFIED),
        ("127.0.0.1:22", tunnel_pb2.NETWORK_TCP),
        ("example.com:80", tunnel_pb2.NETWORK_TCP),
        ("nonsense", tunnel_pb2.NETWORK_TCP),
    ]:
        refusal, _ = await node.tunnel.offer(address, network)
        assert refusal.reason == tunnel_pb2.REFUSAL_REASON_DENIED
        assert "expected" in refusal.message or "not an endpoint of a known service on node 'n'" in refusal.message
        assert "\n" not in refusal.message
    backend.settimeout(0)
    with pytest.raises(BlockingIOError):
        backend.accept()
    assert node.status().refused == {"denied": 6}
    backend.close()


async def test_a_denial_is_a_warning_once_for_each_node_and_target(
    node: Node, ip: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", "causeway.proxy"):
        for address in ("10.0.0.1:22", "10.0.0.1:22", "10.0.0.2:22", "10.0.0.1:22"):
            await node.tunnel.offer(address)
    told = [record for record in caplog.records if record.message == "refused a stream"]
    assert [record.levelname for record in told] == ["WARNING", "DEBUG", "WARNING", "DEBUG"]
    assert (vars(told[0])["peer"], vars(told[0])["target"]) == ("a", "10.0.0.1:22")


async def test_targets_for_some_nodes_follow_the_file(node: Node, ip: str) -> None:
    backend = socket.create_server((ip, 7000))
    path = node.service.config.source
    assert path is not None
    text = path.read_text()
    document = yaml.safe_load(text)
    for nodes, allowed in ((["b", "A*"], True), (["b"], False), (["*"], True)):
        document["modules"]["edgeProxy"]["allowedTargets"] = [{"target": f"{ip}:7000", "nodes": nodes}]
        path.write_text(yaml.safe_dump(document))
        node.service.reload.look()
        answer, sock = await node.tunnel.offer(f"{ip}:7000")  # of node a
        assert isinstance(answer, tunnel_pb2.Accept) is allowed
        if sock is not None:
            sock.close()
        else:
            assert f"{ip}:7000 for node 'a'" in answer.message and "allowedTargets[0].nodes" in answer.message
    backend.close()


async def test_a_backend_that_is_down(node: Node, ip: str) -> None:
    refusal, _ = await node.tunnel.offer(f"{ip}:8080")
    assert refusal.reason == tunnel_pb2.REFUSAL_REASON_CONNECTION_REFUSED
    assert ip in refusal.message and "ECONNREFUSED" in refusal.message


@pytest.mark.slow
async def test_one_dead_backend_blocks_nobody(node: Node, ip: str) -> None:
    """FAILURES 32: a full backlog swallows connects; others are dialled meanwhile, and the dead one is given up in the end."""
    node.discovery.put(service("web", "", ("n", ip, 8080), ready=False, connect="2s"))
    assert node.proxy is not None
    inbound = node.proxy._inbound
    await until(lambda: inbound.patience["default/web"] == 2.0, "that is known")
    dead = Silent(ip, 8080)
    backend = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    backend.bind((ip, 5454))
    waiting = [asyncio.create_task(node.tunnel.offer(f"{ip}:8080")) for _ in range(5)]
    await asyncio.sleep(0.1)
    for _ in range(20):
        answer, sock = await node.tunnel.offer(f"{ip}:5454", UDP)
        assert isinstance(answer, tunnel_pb2.Accept) and sock is not None
        sock.close()
    assert not any(task.done() for task in waiting)
    for task in waiting:
        refusal, _ = await task
        assert refusal.reason == tunnel_pb2.REFUSAL_REASON_UNREACHABLE
        assert "no answer" in refusal.message
    assert not node.proxy._dialer._pending
    dead.close()
    backend.close()


@pytest.mark.slow
@pytest.mark.parametrize(("others", "connect", "seconds"), [(1, "", ATTEMPT), (0, "800ms", 0.8), (1, "100ms", 0.1)])
async def test_other_nodes_wait_for_a_silent_endpoint_as_long_as_makes_sense(
    node: Node, ip: str, others: int, connect: str, seconds: float
) -> None:
    """Shorter where they have another one to ask, and no longer than its DestinationRule says."""
    endpoints = [("n", ip, 8090), *[("b", "10.0.0.1", 80)] * others]
    node.discovery.put(service("several", "", *endpoints, connect=connect))
    assert node.proxy is not None
    inbound = node.proxy._inbound
    await until(lambda: inbound.patience.get("default/several") == seconds, "the service is known")
    silent, begun = Silent(ip, 8090), time.monotonic()
    refusal, _ = await node.tunnel.offer(f"{ip}:8090")
    assert refusal.reason == tunnel_pb2.REFUSAL_REASON_UNREACHABLE
    assert seconds - 0.01 < time.monotonic() - begun < CONNECT
    silent.close()


async def test_names_are_resolved_when_allowed(node: Node, ip: str) -> None:
    backend = socket.create_server(("127.0.0.1", 0))
    answer, sock = await node.tunnel.offer(f"localhost:{backend.getsockname()[1]}")
    assert isinstance(answer, tunnel_pb2.Accept) and sock is not None
    sock.close()
    backend.close()


async def test_names_that_do_not_resolve(node: Node, ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: object, **kwargs: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail)
    refusal, _ = await node.tunnel.offer("localhost:80")
    assert refusal.reason == tunnel_pb2.REFUSAL_REASON_UNREACHABLE
    assert "localhost" in refusal.message and "not known" in refusal.message


async def test_many_offers_at_once(node: Node, ip: str) -> None:
    backend = socket.create_server((ip, 8080), backlog=512)
    answers = await asyncio.gather(*(node.tunnel.offer(f"{ip}:8080") for _ in range(300)))
    for answer, sock in answers:
        assert isinstance(answer, tunnel_pb2.Accept) and sock is not None
        sock.close()
    assert node.status().dialled == 300
    backend.close()


async def test_listening_goes_on_after_a_restart_of_the_tunnel(node: Node, ip: str) -> None:
    backend = socket.create_server((ip, 8080))
    for _ in range(2):
        before = node.tunnel.listeners
        await node.tunnel.stop()
        await node.tunnel.start()
        await until(lambda: node.tunnel.listeners > before)  # noqa: B023 (called within the turn)
        await node.settled()
        _, sock = await node.tunnel.offer(f"{ip}:8080")
        assert sock is not None
        sock.close()
    backend.close()


async def test_a_proxy_that_was_replaced_listens_again(
    node: Node, ip: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.driver.LISTEN_AGAIN", 0.3)
    before = node.tunnel.listeners
    node.tunnel.take_over()
    await until(lambda: "is one running twice?" in caplog.text)
    backend = socket.create_server((ip, 8080))
    _, sock = await node.tunnel.offer(f"{ip}:8080")
    assert sock is not None and node.tunnel.listeners == before + 1
    sock.close()
    backend.close()


async def test_streams_outlive_the_proxy(node: Node, ip: str) -> None:
    backend = socket.create_server((ip, 8080))
    _, sock = await node.tunnel.offer(f"{ip}:8080")
    assert sock is not None
    served, _ = backend.accept()
    await node.stop()
    served.send(b"still here")
    assert await receive(sock) == b"still here"
    offer = asyncio.create_task(node.tunnel.offer(f"{ip}:8080"))  # the tunnel keeps it for the next proxy
    await node.start()
    answer, second = await offer
    assert isinstance(answer, tunnel_pb2.Accept) and second is not None  # which knows the services before it judges
    for one in (sock, served, second, backend):
        one.close()
