"""Balancing by what the first request of an HTTP/2 connection says: real clients on real sockets, gRPC's too."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc.aio
import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core import http2
from services.proxy.core.request import PREFACE, Request
from services.proxy.head import _Http2
from tests.proxy.conftest import Node, until
from tests.proxy.neighbours import service
from tests.proxy.test_head import BY_HEADER, LoopbackIp, dripped, everything, refused, request, sent, taken
from tests.proxy.test_head import ip as ip
from tests.proxy.test_request import frame
from tests.proxy.test_tcp import connect, receive_exactly


def request_2(user: str, more: int = 0, *, cut: int = 0) -> bytes:
    """The same in HTTP/2, as its clients begin: with DATA behind it. `cut`: of its headers go on in CONTINUATION."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", "/x?session=7"), (":authority", "web")]
    block = Encoder().encode([*fields, ("x-more", "y" * more), ("x-user", user)])
    head = frame(1, 1, block[:cut], 0) + frame(9, 1, block[cut:]) if cut else frame(1, 1, block)
    return (
        PREFACE + frame(4, 0, bytes((0, 3, 0, 0, 0, 100)), 0) + frame(8, 0, b"\0\1\0\0") + head + frame(0, 1, b"x" * 99)
    )


@pytest.mark.parametrize("cut", [0, 20])
async def test_a_user_has_one_backend_whichever_http_it_speaks(node: Node, ip: str, cut: int) -> None:
    for number in range(20):
        expected, _ = await sent(node, ip, request(f"user-{number}"))
        data = request_2(f"user-{number}", cut=cut)
        assert await sent(node, ip, data) == (expected, data)
    assert not node.status().warnings


async def test_an_http_2_head_that_drips_is_read_whole(node: Node, ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.proxy.head.PATIENCE", 20.0)
    data = request_2("drip")
    expected, _ = await sent(node, ip, request("drip"))
    assert await dripped(node, ip, data) == (expected, data)


async def test_a_request_that_has_begun_is_waited_for(node: Node, ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.proxy.head.PATIENCE", 0.05)
    data = request_2("patience")
    expected, _ = await sent(node, ip, request("patience"))
    at = len(data) - 120  # amid HEADERS
    client = await connect(ip)
    client.send(data[:at])
    await asyncio.sleep(0.3)
    client.send(data[at:])
    assert await taken(node, len(data)) == (expected, data)
    client.close()


HELLO = PREFACE + frame(4, 0, flags=0)
ACK = frame(4, 0, flags=1)


async def greeted(ip: str) -> socket.socket:
    """A client of HTTP/2 that waited for the server's SETTINGS, and has them."""
    client = await connect(ip)
    client.send(HELLO)
    assert await receive_exactly(client, 9) == frame(4, 0, flags=0)
    return client


async def test_who_waits_for_settings_gets_some_and_its_backend_hears_nothing_of_it(node: Node, ip: str) -> None:
    for number in range(10):
        expected, _ = await sent(node, ip, request(f"user-{number}"))
        rest = request_2(f"user-{number}")[len(PREFACE) :]
        early = await greeted(ip)
        early.send(ACK + rest)
        assert await taken(node, len(HELLO + rest)) == (expected, HELLO + rest)
        late = await greeted(ip)  # its request and our SETTINGS were on the way at once
        late.send(rest)
        await asyncio.sleep(0.02)
        late.send(ACK + rest)
        assert await taken(node, len(HELLO + 2 * rest)) == (expected, HELLO + 2 * rest)
        early.close()
        late.close()
    assert not node.status().warnings


@pytest.mark.slow
async def test_who_has_settings_and_asks_nothing_goes_by_its_address(
    node: Node, ip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.head.TIMEOUT", 0.3)
    silent, idle = await greeted(ip), await greeted(ip)
    idle.send(ACK)
    assert (await taken(node, len(HELLO)))[1] == HELLO
    assert refused(node) == Counter() or refused(node) == {"head_late": 1}
    await until(lambda: refused(node) == {"head_late": 1}, "who does not acknowledge is refused")
    [warning] = node.status().warnings
    assert "1 clients were by their address" in warning
    silent.close()
    idle.close()


@pytest.mark.slow
async def test_real_clients_of_grpc_go_by_header(node: Node, loopback_ip: LoopbackIp) -> None:
    own, ports = loopback_ip(), range(8080, 8085)
    servers = []
    for port in ports:
        servers.append(grpc.aio.server())
        servers[-1].add_generic_rpc_handlers((Named(str(port)),))
        servers[-1].add_insecure_port(f"{own}:{port}")
        await servers[-1].start()
    node.discovery.put(service("web", own, *[("n", own, port) for port in ports], policy=BY_HEADER))
    await node.listening(f"{own}:80")

    async def ask(user: str) -> set[bytes]:
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
        async with grpc.aio.insecure_channel(f"{own}:80", options=options) as channel:
            method = channel.unary_unary("/web/Name")
            return {await method(b"", metadata=(("x-user", user),), timeout=60, wait_for_ready=True) for _ in range(3)}

    users = [f"u{number}" for number in range(12)]
    first = [await ask(user) for user in users]
    assert first == [await ask(user) for user in users]
    assert all(len(seen) == 1 for seen in first) and len(set.union(*first)) > 2
    assert not node.status().warnings
    for server in servers:
        await server.stop(None)


class Named(grpc.GenericRpcHandler):
    """Answers its name to every call."""

    def __init__(self, name: str) -> None:
        self._handler = grpc.unary_unary_rpc_method_handler(self._answer)
        self._name = name.encode()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return self._handler

    async def _answer(self, request: bytes, context: object) -> bytes:
        return self._name


@pytest.mark.slow
async def test_real_clients_of_http_2_go_by_header(node: Node, loopback_ip: LoopbackIp) -> None:
    own = loopback_ip()
    servers = [await asyncio.start_server(refusing(str(port)), own, port) for port in range(8080, 8085)]
    node.discovery.put(service("web", own, *[("n", own, port) for port in range(8080, 8085)], policy=BY_HEADER))
    await node.listening(f"{own}:80")

    async def ask(user: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "-m", "60", "--noproxy", "*", "--http2-prior-knowledge", "-H", f"X-User: {user}",
            f"http://{own}/", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return (await process.communicate())[0].decode()

    users = [f"u{number}" for number in range(8)]
    first = [await ask(user) for user in users]
    assert first == [await ask(user) for user in users]
    assert len(set(first)) > 1 and set(first) <= set(map(str, range(8080, 8085)))
    for server in servers:
        server.close()


def refusing(name: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A server of HTTP/2 that answers its name to every request, and ends."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = b""
        while not (stream := http2.first_stream(data) if len(data) > len(PREFACE) else 0):
            data += await reader.read(10_000)
        writer.write(http2.GREETING + http2.answer(stream, 200, name.encode()))
        writer.close()

    return serve


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x82\x86\x84", b"\x3f\xe1\x1f", b"\x40\x01a\x01b"]))
def test_whatever_stands_for_a_block_is_a_request_or_none(block: bytes, start: bytes) -> None:
    told = _Http2().receive(PREFACE + frame(4, 0, flags=0) + frame(1, 1, start + block))
    assert told is None or isinstance(told, Request)


# ── bounds ──


@pytest.mark.slow
async def test_an_http_2_head_that_is_too_large_or_late(node: Node, ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.proxy.head.TIMEOUT", 0.5)
    begun = PREFACE + frame(4, 0, flags=0) + frame(1, 1, b"x" * 16_000, 0)
    for spoilt, status in (
        (begun + frame(9, 1, b"x" * 16_000, 0) + frame(9, 1, b"x" * 16_000), b"431"),
        (begun, b"408"),
    ):
        client = await connect(ip)
        await asyncio.get_running_loop().sock_sendall(client, spoilt)
        answer = await everything(client)
        assert (
            answer.startswith(http2.GREETING)
            and status in answer
            and answer.endswith(frame(7, 0, b"\0\0\0\1" + bytes(4), 0))
        )
        client.close()
    assert refused(node) == {"head_too_large": 1, "head_late": 1}
