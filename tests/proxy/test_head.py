"""Balancing by what a request's head says: real clients on real sockets, through the whole proxy."""

from __future__ import annotations

import asyncio
import http.client
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from services.proxy.core.request import PREFACE
from tests.proxy.conftest import Node, until
from tests.proxy.neighbours import service
from tests.proxy.test_request import frame
from tests.proxy.test_tcp import connect, receive, receive_exactly

LoopbackIp = Callable[[], str]
FIVE = [("b", f"10.0.0.{i}", 8080) for i in range(1, 6)]
BY_HEADER = {"consistentHash": {"httpHeaderName": "X-User"}}


@pytest.fixture
async def ip(node: Node, loopback_ip: LoopbackIp) -> str:
    """Where a service with five endpoints elsewhere is served, by header."""
    own = loopback_ip()
    node.discovery.put(service("web", own, *FIVE, policy=BY_HEADER))
    await node.listening(f"{own}:80")
    await node.settled()
    return own


async def sent(node: Node, ip: str, data: bytes, *, source: str = "") -> tuple[str, bytes]:
    """A client that sends `data`; the backend it is for, and what reaches that one."""
    with socket.socket() as client:
        if source:
            client.bind((source, 0))
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (ip, 80))
        client.send(data)
        return await taken(node, len(data))


async def taken(node: Node, size: int) -> tuple[str, bytes]:
    outbound, sock = await node.tunnel.next()
    with sock:
        got = outbound.head + await receive_exactly(sock, size - len(outbound.head))
    return outbound.target.address, got


def request(user: str, more: str = "", body: bytes = b"") -> bytes:
    return f"POST /x?session=7 HTTP/1.1\r\nHost: web\r\n{more}X-USER: {user}\r\n\r\n".encode() + body


async def test_one_user_one_backend_whatever_the_port_and_no_byte_is_lost(node: Node, ip: str) -> None:
    chosen: dict[str, str] = {}
    for turn in range(3):
        for number in range(30):
            data = request(f"user-{number}", body=random.Random(turn).randbytes(2000))
            address, got = await sent(node, ip, data)
            assert got == data
            assert chosen.setdefault(f"user-{number}", address) == address
    assert len(set(chosen.values())) > 2
    [row] = node.status().rows
    assert row.balancing == "header X-User"


async def dripped(node: Node, ip: str, data: bytes) -> tuple[str, bytes]:
    """As `sent`, byte by byte."""
    client = await connect(ip)
    for byte in data:
        client.send(bytes((byte,)))
        await asyncio.sleep(0)
    found = await taken(node, len(data))
    client.close()
    return found


async def test_a_head_that_drips_is_read_whole(node: Node, ip: str) -> None:
    data = request("drip")
    expected, _ = await sent(node, ip, data)
    assert await dripped(node, ip, data) == (expected, data)


async def test_http_client_reaches_its_backend_on_this_node(node: Node, loopback_ip: LoopbackIp) -> None:
    """The head goes first into the backend's socket; keep-alive and the body follow."""
    own = loopback_ip()
    servers = [await asyncio.start_server(answering(str(port)), own, port) for port in range(8080, 8085)]
    node.discovery.put(service("web", own, *[("n", own, port) for port in range(8080, 8085)], policy=BY_HEADER))
    await node.listening(f"{own}:80")

    def ask(user: str) -> set[str]:
        """Two requests on each of two connections."""
        seen = set()
        for _ in range(2):
            connection = http.client.HTTPConnection(own, 80, timeout=20)
            for size in (10, 100_000):
                connection.request("POST", "/", body=b"x" * size, headers={"X-User": user})
                answer = connection.getresponse()
                port, length = answer.read().decode().split()
                assert int(length) == size
                seen.add(port)
            connection.close()
        return seen

    users = await asyncio.gather(*(asyncio.to_thread(ask, f"u{number}") for number in range(20)))
    assert all(len(seen) == 1 for seen in users)
    assert len(set.union(*users)) > 2
    for server in servers:
        server.close()


def answering(name: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A server of HTTP/1.1 that tells its name and the size of the request's body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                await reader.readexactly(length)
                body = f"{name} {length}".encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    return serve


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",  # malformed: for the backend to say
        PREFACE + frame(4, 0, flags=0) + frame(1, 1, b"\xff" * 10),  # no HPACK
        PREFACE + frame(1, 1, b"\x82"),  # no SETTINGS
        PREFACE
        + frame(4, 0, flags=0)
        + frame(1, 1, b"\x40\x01a\x7f\xa1\x1e" + b"a" * 4000 + b"\xbe" * 12_000),  # a bomb
        b"GET / HTTP/1.1\r\nHost: web\r\n\r\n",  # without the header
    ],
    ids=["tls", "ssh", "malformed", "no hpack", "no settings", "bomb", "without"],
)
async def test_what_has_no_such_header_sticks_by_its_address(
    node: Node, ip: str, loopback_ip: LoopbackIp, data: bytes
) -> None:
    seen: Counter[str] = Counter()
    for source in [loopback_ip() for _ in range(20)]:
        addresses = set()
        for _ in range(2):
            address, got = await sent(node, ip, data, source=source)
            assert got == data
            addresses.add(address)
        assert len(addresses) == 1
        seen.update(addresses)
    assert len(seen) > 2
    without = data.endswith(b"web\r\n\r\n")  # a request all the same
    assert any("40 clients were by their address" in one for one in node.status().warnings) is not without


async def test_without_such_a_policy_nothing_is_read(node: Node, loopback_ip: LoopbackIp) -> None:
    own = loopback_ip()
    node.discovery.put(service("web", own, *FIVE, policy={"consistentHash": {"useSourceIp": True}}))
    await node.listening(f"{own}:80")
    client = await connect(own)
    client.send(request("x"))
    outbound, sock = await node.tunnel.next()
    assert outbound.head == b""
    assert await receive(sock) == request("x")
    sock.close()
    client.close()


COOKIE = "Cookie: theme=dark; sid={}; x=y\r\n"


def hashing(**key: Any) -> dict[str, Any]:
    return {"policy": {"consistentHash": key}}


def annotated(text: str) -> dict[str, Any]:
    return {"annotations": {"causeway/load-balancing": text, "causeway/consistent-hash": "load=2", "other/thing": "x"}}


@pytest.mark.parametrize(
    ("asked", "vary"),
    [
        (hashing(httpCookie={"name": "sid", "ttl": "0s"}), COOKIE),
        (hashing(httpQueryParameterName="q"), ""),
        (annotated("header X-User"), "x-user: {}\r\n"),
        (annotated("cookie sid"), COOKIE),
        (annotated("query-parameter q"), ""),
    ],
    ids=["cookie", "query", "header, annotated", "cookie, annotated", "query, annotated"],
)
async def test_what_else_may_be_hashed(node: Node, loopback_ip: LoopbackIp, asked: dict[str, Any], vary: str) -> None:
    own = loopback_ip()
    node.discovery.put(service("web", own, *FIVE, **asked))
    await node.listening(f"{own}:80")
    chosen: dict[str, str] = {}
    for _ in range(2):
        for key in "abcdefghijkl":
            data = f"GET /?a=1&q={key}&b=2 HTTP/1.1\r\nHost: x\r\n{vary.format(key)}\r\n".encode()
            address, _ = await sent(node, own, data)
            assert chosen.setdefault(key, address) == address
    assert len(set(chosen.values())) > 2


async def test_an_annotation_that_means_nothing_is_said_in_status(node: Node, loopback_ip: LoopbackIp) -> None:
    own = loopback_ip()
    wrong = {"causeway/load-balancing": "heder x-user"}
    node.discovery.put(service("web", own, *FIVE, annotations=wrong))
    await node.listening(f"{own}:80")
    (warning,) = node.status().warnings
    assert warning.startswith("service default/web is spread by round-robin: load balancing 'heder x-user' is unknown")
    seen = {(await sent(node, own, b"hello"))[0] for _ in range(5)}
    assert len(seen) == 5, "served all the same, in turn"


# ── bounds ──


async def test_too_large_a_head(node: Node, ip: str) -> None:
    for spoilt in (request("x", "X-Long: " + "y" * 40_000 + "\r\n"), b"GET /" + b"y" * 40_000):
        client = await connect(ip)
        await asyncio.get_running_loop().sock_sendall(client, spoilt)
        if spoilt.startswith(b"POST"):
            answer = await everything(client)
            assert answer.startswith(b"HTTP/1.1 431 ") and answer.endswith(b"\n"), answer
            assert b"head_too_large" in answer
        else:
            with pytest.raises(ConnectionResetError):  # never became a request
                await everything(client)
        client.close()
    assert refused(node) == {"head_too_large": 2}


@pytest.mark.slow
async def test_a_head_that_does_not_come(node: Node, ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.proxy.head.TIMEOUT", 0.3)
    begun, silent = await connect(ip), await connect(ip)
    begun.send(b"GET / HTTP/1.1\r\nHost: web\r\n")
    answer = await everything(begun)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"head_late" in answer
    with pytest.raises(ConnectionResetError):
        await everything(silent)
    assert refused(node) == {"head_late": 2}
    begun.close()
    silent.close()


async def test_a_client_that_goes_away_with_half_a_head(node: Node, ip: str) -> None:
    assert node.proxy is not None
    heads = node.proxy._departure._heads
    client = await connect(ip)
    client.send(b"GET / HT")
    await until(lambda: len(heads) == 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    await until(lambda: not len(heads))
    half = await connect(ip)
    half.send(b"GET / HT")
    half.shutdown(socket.SHUT_WR)
    assert (await taken(node, 8))[1] == b"GET / HT"  # what that means its backend may say
    half.close()


async def test_f36_slow_heads_take_places_from_each_other_only(
    node: Node, ip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.head.MAX_READING", 50)
    assert node.proxy is not None
    heads = node.proxy._departure._heads
    slow = []
    for number in range(200):
        client = await connect(ip)
        client.send(b"GET /slow HTTP/1.1\r\n")
        slow.append(client)
        if number % 10 == 9:
            data = request(f"user-{number}")
            assert (await sent(node, ip, data))[1] == data  # served at once, all the while
        assert len(heads) <= 50
    await until(lambda: refused(node)["head_late"] >= 150, "the first of the slow ones made room")
    assert (await everything(slow[0])).startswith(b"HTTP/1.1 408 ")
    for client in slow:
        client.close()
    await until(lambda: not len(heads), "nothing is left of them")


async def everything(sock: socket.socket) -> bytes:
    data = b""
    while part := await receive(sock):
        data += part
    return data


def refused(node: Node) -> Counter[str]:
    """Clients that were refused, by reason."""
    assert node.proxy is not None
    counts: Counter[str] = Counter()
    for (_, reason), count in node.proxy._counters.refused_local.items():
        counts[reason] += count
    return counts
