"""The SOCKS5 proxy with real clients on one side, and the contract of the tunnel on the other."""

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import yaml

from protos import discovery_pb2, tunnel_pb2
from services.proxy import association, socks5
from services.proxy.core.plan import FILTER_LABEL
from tests import loopback
from tests.proxy.conftest import Node, make, until
from tests.proxy.neighbours import UDP, service
from tests.proxy.test_tcp import connect, receive, receive_exactly

PORT = 10800
OK = b"\x05\x00\x00\x01" + bytes(6)


@pytest.fixture
def ip(loopback_ip: Callable[[], str]) -> str:
    """Where the proxy listens, and where services are served."""
    return loopback_ip()


Start = Callable[..., Any]


@pytest.fixture
async def start(node_config: Any, ip: str) -> AsyncIterator[Start]:
    """`await start(**socks5Proxy, allowed=[…])` starts node "n", to which "b" and "c" are known."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(allowed: tuple[str, ...] = (), **keys: Any) -> Node:
            proxy = {"socks5Proxy": {"enable": True, "listenAddress": ip} | keys, "allowedTargets": list(allowed)}
            node = make(node_config("n", modules={"edgeProxy": proxy}))
            node.discovery.nodes = ["b", "c.example"]
            for part in (node.tunnel, node.discovery, node):
                await part.start()
                stack.push_async_callback(part.stop)
            assert node.proxy is not None
            await until(lambda: "c.example" in names(node), "nodes are known")
            return node

        yield begin


def names(node: Node) -> set[str]:
    assert node.proxy is not None
    return node.proxy._socks5._names.nodes


def greetings(node: Node) -> int:
    assert node.proxy is not None
    return len(node.proxy._socks5._greeted)


def address(host: str, port: int) -> bytes:
    try:
        literal = ipaddress.ip_address(host)
        wire = bytes((1 if literal.version == 4 else 4,)) + literal.packed
    except ValueError:
        wire = bytes((3, len(host))) + host.encode()
    return wire + port.to_bytes(2, "big")


async def ask(
    ip: str, host: str, port: int, *, command: int = 1, more: bytes = b"", proxy: int = PORT
) -> socket.socket:
    """A client that has sent its request, and not read the answer to that."""
    client = await connect(ip, proxy)
    await say(client, b"\x05\x01\x00")
    assert await receive_exactly(client, 2) == b"\x05\x00"
    await say(client, bytes((5, command, 0)) + address(host, port) + more)
    return client


async def say(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def ended(sock: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return not await receive(sock)
    return True


async def refused(ip: str, host: str, port: int, *, command: int = 1) -> int:
    """The code of the refusal, after which the proxy closes."""
    client = await ask(ip, host, port, command=command)
    answer = await receive_exactly(client, 10)
    assert (answer[0], answer[2:]) == (5, b"\x00\x01" + bytes(6))
    assert await ended(client)
    client.close()
    return answer[1]


async def test_a_node_by_its_name(start: Start, ip: str) -> None:
    node = await start()
    client = await ask(ip, "b", 22, more=b"early")
    asked = await node.tunnel.asked()
    assert (asked.open.node, asked.open.target.address, asked.open.target.service) == ("b", "127.0.0.1:22", "")
    assert (asked.open.welcome, asked.open.head, asked.open.keep) == (OK, b"early", True)
    assert not asked.open.HasField("timeout"), "there is nowhere else to go: as long as any client"
    own = client.getsockname()
    assert asked.open.client == f"{own[0]}:{own[1]}"
    served = asked.accept()
    served.send(b"banner")
    assert await receive_exactly(client, 16) == OK + b"banner"
    served.close()
    assert await ended(client), "the proxy has let go of it"
    client.close()


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("10.0.0.5.b", ("b", "10.0.0.5:80")),
        ("db.c.example", ("c.example", "db:80")),
        ("nobody-knows", ("nobody-knows", "127.0.0.1:80")),
        ("web", ("b", "10.1.1.1:8080")),
        ("web.default.svc.cluster.local", ("b", "10.1.1.1:8080")),
        ("127.254.0.7", ("b", "10.1.1.1:8080")),
        ("headless.default", ("b", "10.1.1.2:8080")),
        ("10-1-1-2.pods.default", ("b", "10.1.1.2:80")),
        ("fd00--2.pods.default.svc", ("b", "[fd00::2]:80")),
        ("FD00--2.Pods.default.svc.cluster.local.", ("b", "[fd00::2]:80")),
        ("10-1-1-1.pods.default", ("default", "10-1-1-1.pods:80")),  # no such endpoint: perhaps a node
        ("10-1-1-1.web.default", ("default", "10-1-1-1.web:80")),  # endpoints of others have no names
        ("fd00::5.b", ("b", "[fd00::5]:80")),
    ],
)
async def test_other_names(start: Start, ip: str, host: str, target: tuple[str, str]) -> None:
    node = await start()
    node.discovery.put(
        service("web", "127.254.0.7", ("b", "10.1.1.1", 8080)),
        service("headless", "", ("b", "10.1.1.2", 8080)),
        service("pods", "", ("b", "10.1.1.2", 80), ("b", "fd00::2", 80), ("b", "10.1.1.3", 81)),
    )
    assert node.proxy is not None
    await until(lambda: len(node.proxy._socks5._names._services) == 3, "services are known")
    client = await ask(ip, host, 80)
    asked = await node.tunnel.asked()
    assert (asked.open.node, asked.open.target.address) == target
    asked.accept().close()
    client.close()


@pytest.mark.parametrize(
    ("reason", "code"),
    [("DENIED", 2), ("UNREACHABLE", 4), ("CONNECTION_REFUSED", 5), ("UNKNOWN_NODE", 4), ("NO_PATH", 4), ("LIMIT", 1)],
)
async def test_refusals_of_the_exit(
    start: Start, ip: str, reason: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    node = await start()
    caplog.set_level(logging.INFO)
    client = await ask(ip, "b", 22, more=b"early")
    asked = await node.tunnel.asked()
    number = tunnel_pb2.RefusalReason.Value(f"REFUSAL_REASON_{reason}")
    asked.refuse(number, "b does not want it", head=b"early")
    answer = await receive_exactly(client, 10)
    assert answer[1] == code
    assert await ended(client)
    client.close()
    (record,) = [record for record in caplog.records if record.message == "refused a SOCKS client"]
    assert (record.error, record.target) == ("b does not want it", "b:22")  # type: ignore[attr-defined]


async def test_refusals_of_this_node(start: Start, ip: str) -> None:
    node = await start()
    outside = discovery_pb2.Service(namespace="default", name="outside", external_name="db.example.com")
    node.discovery.put(service("web", "127.254.0.7"), service("pods", "", ("b", "10.1.1.2", 81)), outside)
    assert node.proxy is not None
    known = {"default/web", "default/pods", "default/outside"}
    await until(lambda: known <= set(node.proxy._socks5._names._services), "services are known")
    assert await refused(ip, "192.0.2.1", 80) == 2
    assert await refused(ip, "2001:db8::1", 80) == 2
    assert await refused(ip, "web.nowhere.svc", 80) == 4
    assert await refused(ip, "web", 80) == 4, "no endpoint"
    assert await refused(ip, "web", 81) == 5, "no such port"
    assert await refused(ip, "10-1-1-2.pods.default", 80) == 5, "no such port of this endpoint"
    assert await refused(ip, "10-1-1-3.pods.default.svc", 81) == 4, "no such endpoint"
    assert await refused(ip, "outside", 80) == 4, "that is not in the mesh"
    assert await refused(ip, "b", 0) == 4
    assert await refused(ip, "b", 80, command=2) == 7, "BIND"
    assert await refused(ip, "n", 22) == 2, "this node's own policy"
    client = await connect(ip, PORT)
    await say(client, b"\x05\x01\x00\x05\x01\x00\x02")
    assert (await receive_exactly(client, 12))[3] == 8
    assert await ended(client)
    client.close()
    assert node.tunnel.opened.empty()


async def test_a_service_that_is_left_out_is_refused_for_that_reason(
    start: Start, ip: str, caplog: pytest.LogCaptureFixture
) -> None:
    node = await start()
    caplog.set_level(logging.INFO)
    for name, address in (("web", "127.254.0.7"), ("pods", "")):
        one = service(name, address, ("b", "10.1.1.2", 81))
        one.labels[FILTER_LABEL] = "other"
        node.discovery.put(one)
    assert node.proxy is not None
    await until(lambda: len(node.proxy._socks5._names._services) == 2, "services are known")
    assert await refused(ip, "web", 80) == 4
    assert await refused(ip, "10-1-1-2.pods.default", 81) == 4
    records = [record for record in caplog.records if record.message == "refused a SOCKS client"]
    assert len(records) == 2
    assert all("is left out: it has the label" in record.error for record in records)  # type: ignore[attr-defined]


async def test_a_pod_of_this_node_by_its_name(start: Start, ip: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        node = await start()
        one = service("web", "", ("n", "127.0.0.1", port))
        one.endpoints[0].pod = "web-0"
        node.discovery.put(one)
        assert node.proxy is not None
        await until(lambda: node.proxy._socks5._names._services, "services are known")
        client = await ask(ip, "web-0.n", port)
        served, _ = await asyncio.get_running_loop().sock_accept(server)
        assert await receive_exactly(client, 10) == OK
        client.close()
        served.close()


async def test_an_endpoint_of_which_nobody_knows_the_node_is_dialled_from_here(start: Start, ip: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        node = await start()
        node.discovery.put(service("web", "127.254.0.7", ("", "127.0.0.1", port)))
        assert node.proxy is not None
        await until(lambda: node.proxy._socks5._names._services, "services are known")
        client = await ask(ip, "web", 80)
        served, _ = await asyncio.get_running_loop().sock_accept(server)
        assert await receive_exactly(client, 10) == OK
        client.close()
        served.close()


async def test_this_node_as_a_target_that_is_allowed(start: Start, ip: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        await start(allowed=(f"127.0.0.1:{port}",))
        client = await ask(ip, "n", port, more=b"early")
        served, _ = await asyncio.get_running_loop().sock_accept(server)
        served.setblocking(False)
        await say(served, b"banner")
        assert await receive_exactly(client, 16) == OK + b"banner"
        assert await receive_exactly(served, 5) == b"early"
        client.close()
        served.close()


async def test_a_service_of_several_backends_tries_the_next(start: Start, ip: str) -> None:
    node = await start()
    node.discovery.put(service("web", "127.254.0.7", ("b", "10.1.1.1", 1), ("b", "10.1.1.2", 1)))
    assert node.proxy is not None
    await until(lambda: "default/web" in node.proxy._socks5._names._services, "services are known")
    client = await ask(ip, "web", 80)
    first = await node.tunnel.asked()
    first.refuse(tunnel_pb2.REFUSAL_REASON_CONNECTION_REFUSED, "nobody there")
    second = await node.tunnel.asked()
    assert {one.open.target.address for one in (first, second)} == {"10.1.1.1:1", "10.1.1.2:1"}
    second.accept().close()
    assert await receive_exactly(client, 10) == OK
    client.close()


async def test_handshakes_side_by_side_do_not_mix(start: Start, ip: str) -> None:
    """FAILURES 32: EdgeMesh keeps one request for all connections. Byte by byte, by turns."""
    node = await start()
    clients = [await connect(ip, PORT) for _ in range(30)]
    sent = [b"\x05\x01\x00\x05\x01\x00" + address(f"10.0.0.{number}.b", 1000 + number) for number in range(30)]
    for place in range(max(map(len, sent))):
        for client, request in zip(clients, sent, strict=True):
            if place < len(request):
                await say(client, request[place : place + 1])
    for _ in clients:
        asked = await node.tunnel.asked()
        ip_port = asked.open.target.address
        number = int(ip_port.rpartition(":")[2]) - 1000
        assert ip_port == f"10.0.0.{number}:{1000 + number}"
        served = asked.accept()
        served.send(b"%02d" % number)
        served.close()
    for number, client in enumerate(clients):
        assert await receive_exactly(client, 14) == b"\x05\x00" + OK + b"%02d" % number
        client.close()


# ── who is let in ──


async def test_users_and_their_passwords(start: Start, ip: str, node_config: Any) -> None:
    node = await start(users=[{"name": "alice", "password": "x"}], passwordFile="passwords")
    file = node.service.config.source.parent / "passwords"  # type: ignore[union-attr]
    assert any("passwordFile" in warning and "No such file" in warning for warning in node.status().warnings)
    file.write_text("bob:y\n")

    async def log_in(user: str, password: str) -> bytes:
        client = await connect(ip, PORT)
        await say(client, b"\x05\x02\x00\x02")
        assert await receive_exactly(client, 2) == b"\x05\x02"
        await say(client, bytes((1, len(user))) + user.encode() + bytes((len(password),)) + password.encode())
        answer = await receive_exactly(client, 2)
        if answer[1]:
            assert await ended(client)
        client.close()
        return answer

    for user, password, answer in (("alice", "x", 0), ("alice", "y", 1), ("bob", "y", 0), ("eve", "x", 1)):
        assert await log_in(user, password) == bytes((1, answer))
    assert not any("passwordFile" in warning for warning in node.status().warnings)
    file.write_text("bob:another one\n")
    assert await log_in("bob", "y") == b"\x01\x01", "the file was read again"
    client = await connect(ip, PORT)
    await say(client, b"\x05\x01\x00")
    assert await receive_exactly(client, 2) == b"\x05\xff"
    assert await ended(client)
    client.close()


async def test_an_open_proxy_beyond_loopback_is_a_warning(start: Start, ip: str) -> None:
    node = await start(listenAddress="", listenPort=loopback.port())
    await until(lambda: any(row.label == "SOCKS5" and not row.error for row in node.status().rows))
    assert any("asks for no password" in warning for warning in node.status().warnings)


async def test_slow_handshakes_end_and_do_not_keep_others_out(
    start: Start, ip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socks5, "MAX_HANDSHAKES", 20)
    node = await start()
    slow = [await connect(ip, PORT) for _ in range(20)]
    for client in slow:
        await say(client, b"\x05")
    await until(lambda: greetings(node) == 20)
    client = await ask(ip, "b", 22)
    (await node.tunnel.asked()).accept().close()
    assert await receive_exactly(client, 10) == OK
    client.close()
    assert await ended(slow[0]), "the oldest made room"
    monkeypatch.setattr(socks5, "HANDSHAKE", 0.2)
    late = await connect(ip, PORT)
    await until(lambda: greetings(node) == 20)
    for greeted in node.proxy._socks5._greeted:  # type: ignore[union-attr]
        greeted.deadline = min(greeted.deadline, asyncio.get_running_loop().time())
    node.proxy._socks5._expire()  # type: ignore[union-attr]
    await until(lambda: greetings(node) == 0)
    for client in (*slow, late):
        assert await ended(client)
        client.close()


# ── while it runs ──


async def test_it_is_switched_while_connections_live_on(start: Start, ip: str) -> None:
    node = await start()
    path = node.service.config.source
    assert path is not None
    client = await ask(ip, "b", 22)
    served = (await node.tunnel.asked()).accept()
    assert await receive_exactly(client, 10) == OK

    async def change(**keys: Any) -> None:
        document = yaml.safe_load(path.read_text())
        document["modules"]["edgeProxy"]["socks5Proxy"].update(keys)
        path.write_text(yaml.safe_dump(document))
        node.service.reload.look()

    async def talks() -> None:
        await say(client, b"ping")
        assert await receive_exactly(served, 4) == b"ping"

    await change(listenPort=10801)
    with pytest.raises(ConnectionRefusedError):
        await connect(ip, PORT)
    (await connect(ip, 10801)).close()
    await talks()
    await change(enable=False)
    with pytest.raises(ConnectionRefusedError):
        await connect(ip, 10801)
    assert not node.status().rows
    await talks()
    await change(enable=True, listenPort=PORT)
    (await connect(ip, PORT)).close()
    await talks()
    client.close()
    served.close()


async def test_a_port_that_is_taken_is_had_as_soon_as_it_is_free(
    start: Start, ip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socks5, "_RETRY_FIRST", 0.05)
    with socket.create_server((ip, PORT)):
        node = await start()
        (row,) = node.status().rows
        assert "Address already in use" in row.error
    await until(lambda: not node.status().rows[0].error)
    (await connect(ip, PORT)).close()


# ── UDP ──


class Client:
    """Of UDP through the proxy."""

    def __init__(self, ip: str, control: socket.socket, relay: tuple[str, int]) -> None:
        self.control = control
        self.relay = relay
        self.sock = socket.socket(control.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.bind((ip, 0))

    @classmethod
    async def associate(cls, ip: str, own: str, proxy: int = PORT) -> "Client":
        version = ipaddress.ip_address(ip).version
        control = await ask(ip, "0.0.0.0" if version == 4 else "::", 0, command=3, proxy=proxy)
        answer = await receive_exactly(control, 10 if version == 4 else 22)
        assert answer[:4] == b"\x05\0\0" + (b"\1" if version == 4 else b"\4")
        return cls(own, control, (str(ipaddress.ip_address(answer[4:-2])), int.from_bytes(answer[-2:], "big")))

    def send(self, host: str, port: int, payload: bytes, *, fragment: int = 0) -> None:
        self.sock.sendto(bytes((0, 0, fragment)) + address(host, port) + payload, self.relay)

    async def receive(self) -> bytes:
        async with asyncio.timeout(20):
            return await asyncio.get_running_loop().sock_recv(self.sock, 65536)

    def close(self) -> None:
        self.sock.close()
        self.control.close()


@pytest.fixture
async def client(start: Start, ip: str) -> AsyncIterator[Client]:
    node = await start()
    one = await Client.associate(ip, "127.0.0.1")
    one.node = node  # type: ignore[attr-defined]
    yield one
    one.close()


def flows(node: Node) -> int:
    assert node.proxy is not None
    return node.proxy._socks5._associations.flows


async def test_datagrams_with_their_borders_to_several_targets(client: Any, ip: str) -> None:
    node = client.node
    payloads = [b"one", b"", b"x" * 30_000, b"four"]
    for payload in payloads:
        client.send("b", 53, payload)
    asked, far = await node.tunnel.next()
    assert (asked.node, asked.target.network, asked.target.address) == ("b", UDP, "127.0.0.1:53")
    for payload in payloads:
        assert await receive(far) == payload
    client.send("10.0.0.5.b", 53, b"elsewhere")
    asked, other = await node.tunnel.next()
    assert asked.target.address == "10.0.0.5:53"
    assert await receive(other) == b"elsewhere"
    assert client.relay[0] == ip
    for sock, host, answer in ((other, "10.0.0.5.b", b""), (far, "b", b"y" * 30_000), (far, "b", b"z")):
        sock.send(answer)
        assert await client.receive() == b"\0\0\0" + address(host, 53) + answer
    assert node.tunnel.opened.empty()
    assert flows(node) == 2
    far.close()
    other.close()


async def test_what_is_no_datagram_for_anybody_is_dropped(client: Any) -> None:
    node = client.node
    client.send("b", 53, b"a fragment", fragment=1)
    client.sock.sendto(b"nonsense", client.relay)
    client.send("192.0.2.1", 53, b"not a service")
    client.send("b", 53, b"fine")
    _, far = await node.tunnel.next()
    assert await receive(far) == b"fine"
    assert dict(node.proxy._counters.dropped) == {"malformed": 2, "denied": 1}
    far.close()


async def test_nobody_else_may_use_an_association(client: Any, loopback_ip: Callable[[], str]) -> None:
    node = client.node
    datagram = bytes(3) + address("b", 53)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind((loopback_ip(), 0))
        stranger.sendto(datagram + b"from elsewhere", client.relay)
        client.send("b", 53, b"mine")
        _, far = await node.tunnel.next()
        assert await receive(far) == b"mine"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as neighbour:
            neighbour.sendto(datagram + b"from another port", client.relay)
        client.send("b", 53, b"mine again")
        assert await receive(far) == b"mine again"
    far.close()


async def test_an_association_ends_with_its_connection(client: Any) -> None:
    node = client.node
    client.send("b", 53, b"one")
    _, far = await node.tunnel.next()
    assert flows(node) == 1
    client.control.close()
    await until(lambda: flows(node) == 0 and len(node.proxy._socks5._associations) == 0, "it ended")
    assert await receive(far) == b"one"
    far.send(b"to nobody")
    with pytest.raises(ConnectionRefusedError):
        await receive(far)
    far.close()


async def test_a_flow_that_was_ended_elsewhere_is_opened_again(client: Any) -> None:
    node = client.node
    for number in range(3):
        client.send("b", 53, b"%d" % number)
        _, far = await node.tunnel.next()
        assert await receive(far) == b"%d" % number
        far.close()
    assert flows(node) == 1


async def test_idle_flows_end(client: Any) -> None:
    node = client.node
    client.send("b", 53, b"one")
    _, far = await node.tunnel.next()
    (one,) = node.proxy._socks5._associations._open
    one.expire(asyncio.get_running_loop().time())
    assert flows(node) == 1
    one.expire(asyncio.get_running_loop().time() + 60)
    assert flows(node) == 0
    far.close()


@pytest.mark.slow  # the shortest time is a second
async def test_the_configured_time_ends_flows_of_associations_too(client: Any) -> None:
    node = client.node
    client.send("b", 53, b"one")
    _, far = await node.tunnel.next()
    path = node.service.config.source
    document = yaml.safe_load(path.read_text())
    document["modules"]["edgeProxy"]["udpIdleSeconds"] = 1
    path.write_text(yaml.safe_dump(document))
    node.service.reload.look()
    await until(lambda: flows(node) == 0, "the flow has ended")
    far.close()


async def test_associations_and_flows_are_bounded(client: Any, ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = client.node
    monkeypatch.setattr(association, "MAX_FLOWS", 3)
    taken = []
    for number in range(1, 6):
        client.send("b", number, b"x")
        taken.append((await node.tunnel.next())[1])
    assert flows(node) == 3
    client.send("b", 4, b"still")
    assert await receive(taken[3]) == b"x"
    assert await receive(taken[3]) == b"still"
    monkeypatch.setattr(association, "MAX_FLOWS_IN_ALL", 3)
    monkeypatch.setattr(association, "MAX_ASSOCIATIONS", 2)
    other = await Client.associate(ip, "127.0.0.1")
    other.send("b", 1, b"one too many")
    await until(lambda: node.proxy._counters.dropped["overflow"] == 1)
    third = await ask(ip, "0.0.0.0", 0, command=3)
    assert (await receive_exactly(third, 10))[1] == 1
    for sock in (*taken, other, third):
        sock.close()


async def test_ipv6(start: Start) -> None:
    """The client, the proxy, and the targets: a service by its clusterIP, and an address at a node."""
    port = loopback.port()
    node = await start(listenAddress="::1", listenPort=port)
    node.discovery.put(service("dns", "fd00::7", ("b", "fd00::53", 5353), port=53, udp=True))
    assert node.proxy is not None
    await until(lambda: "default/dns" in node.proxy._socks5._names._services, "services are known")
    stream = await ask("::1", "fd00::7", 53, proxy=port)
    assert (await receive_exactly(stream, 10))[1] == 5, "the service has no such port of TCP"
    stream.close()
    client = await Client.associate("::1", "::1", port)
    assert client.relay[0] == "::1"
    for host, target in (("fd00::7", "[fd00::53]:5353"), ("fd00::5.b", "[fd00::5]:53")):
        client.send(host, 53, b"question")
        asked, far = await node.tunnel.next()
        assert (asked.node, asked.target.network, asked.target.address) == ("b", UDP, target)
        assert ipaddress.ip_address(asked.client.rpartition(":")[0].strip("[]")) == ipaddress.ip_address("::1")
        assert await receive(far) == b"question"
        far.send(b"answer to " + host.encode())
        assert await client.receive() == b"\0\0\0" + address(host, 53) + b"answer to " + host.encode()
        far.close()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as neighbour:
        neighbour.sendto(bytes(3) + address("b", 53) + b"from another port", client.relay)
    client.send("fd00::5.b", 54, b"mine")
    asked, far = await node.tunnel.next()
    assert (asked.target.address, await receive(far)) == ("[fd00::5]:54", b"mine")
    far.close()
    client.close()
    await until(lambda: not len(node.proxy._socks5._associations), "it ended")
