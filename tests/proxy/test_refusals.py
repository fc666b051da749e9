"""How a client learns that it gets no connection: by an answer where it speaks HTTP, else by a reset. Real clients."""

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from protos import tunnel_pb2
from services.proxy.core.request import PREFACE
from tests.proxy.conftest import Node, until
from tests.proxy.neighbours import service
from tests.proxy.test_head import everything, refused
from tests.proxy.test_tcp import connect, receive

LoopbackIp = Callable[[], str]
DENIED = tunnel_pb2.Refusal(reason=tunnel_pb2.REFUSAL_REASON_DENIED, message="not on\r\nmy watch")
NO_PATH = tunnel_pb2.Refusal(reason=tunnel_pb2.REFUSAL_REASON_NO_PATH, message="no path to b")
NOBODY = tunnel_pb2.Refusal(reason=tunnel_pb2.REFUSAL_REASON_UNKNOWN_NODE, message="nobody knows a node b")
DEAD = tunnel_pb2.Refusal(reason=tunnel_pb2.REFUSAL_REASON_CONNECTION_REFUSED, message="connect: ECONNREFUSED")

ELSEWHERE = [("b", "10.0.0.1", 8080), ("c", "10.0.0.2", 8080)]


@pytest.fixture(params=[1, 2], ids=["one backend", "two backends"])
async def ip(request: pytest.FixtureRequest, node: Node, loopback_ip: LoopbackIp) -> AsyncIterator[str]:
    """Where a service with backends elsewhere is served."""
    own = loopback_ip()
    node.discovery.put(service("web", own, *ELSEWHERE[: request.param]))
    await node.listening(f"{own}:80")
    await node.settled()
    yield own
    assert node.proxy is not None
    refusals = node.proxy._departure._refusals
    await until(lambda: not len(refusals), "nobody is left half told")


async def curl(*arguments: str) -> tuple[int, str, str]:
    """Exit code, the status that it got, the body."""
    assert shutil.which("curl"), "these tests need curl"
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--noproxy", "*", "-m", "20", "-w", "\n%{http_code}", *arguments,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    body, _, status = output.decode().rpartition("\n")
    assert process.returncode is not None
    return process.returncode, status, body


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refusal", "status", "text"),
    [
        (DENIED, "403", "causeway: denied: not on  my watch\n"),
        (DEAD, "502", "causeway: connection_refused: connect: ECONNREFUSED\n"),
        (NO_PATH, "503", "causeway: no_path: no path to b\n"),
        (NOBODY, "502", "causeway: unknown_node: nobody knows a node b\n"),
    ],
    ids=["denied", "dead", "no path", "nobody"],
)
async def test_curl_is_told_why(
    node: Node, ip: str, tmp_path: Path, refusal: tunnel_pb2.Refusal, status: str, text: str
) -> None:
    node.tunnel.refusal = refusal
    big = tmp_path / "big"
    big.write_bytes(bytes(5_000_000))
    for read_ahead in (0, 10):
        node.tunnel.read_ahead = read_ahead  # what the tunnel had read comes back
        assert await curl(f"http://{ip}/") == (0, status, text)
        code, got, body = await curl("-I", f"http://{ip}/")
        assert (code, got) == (0, status) and body.endswith("\r\n\r\n")  # a head, and nothing behind it
        code, got, body = await curl("--data-binary", f"@{big}", "-H", "Expect:", f"http://{ip}/")
        assert (got, body) == (status, text) and code in (0, 55, 56)  # it may find that its upload is not wanted
        assert await curl("--http2-prior-knowledge", f"http://{ip}/") == (0, status, text)
    reason = text.split(": ")[1]
    assert refused(node)[reason] >= 8


async def test_whoever_speaks_something_else_is_reset_at_once(node: Node, ip: str) -> None:
    node.tunnel.refusal = DENIED
    client = await connect(ip)
    client.send(b"\x16\x03\x01 no request")
    with pytest.raises(ConnectionResetError):
        await receive(client)
    client.close()


@pytest.mark.parametrize("data", [b"GET /" + b"a" * 40_000, PREFACE + b"\0\0\0\4\0\0\0\0\0" * 4000], ids=["line", "h2"])
async def test_whoever_says_much_and_asks_nothing_is_ended(
    node: Node, ip: str, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr("services.proxy.refusals.PATIENCE", 3600.0)
    node.tunnel.refusal = DENIED
    for read_ahead in (0, 18_000):  # twice as much with two backends
        node.tunnel.read_ahead = read_ahead
        client = await connect(ip)
        await asyncio.get_running_loop().sock_sendall(client, data)
        with contextlib.suppress(ConnectionResetError):
            assert (await everything(client))[9:] in (b"", b"\0\0\0\4\1\0\0\0\0")  # at most our SETTINGS
        client.close()


async def test_who_says_nothing_is_reset_and_who_says_it_late_is_told(node: Node, ip: str) -> None:
    node.tunnel.refusal = DENIED
    silent, late = await connect(ip), await connect(ip)
    await until(lambda: refused(node)["denied"] == 2)
    late.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await everything(late)).startswith(b"HTTP/1.1 403 ")
    with pytest.raises(ConnectionResetError):
        await receive(silent)
    for client in (silent, late):
        client.close()


async def test_many_that_never_end_hold_bounded_places(node: Node, ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.proxy.refusals.MAX_TOLD", 20)
    node.tunnel.refusal = DENIED
    assert node.proxy is not None
    refusals = node.proxy._departure._refusals
    clients = [await connect(ip) for _ in range(60)]
    await until(lambda: refused(node)["denied"] == 60)
    assert len(refusals) <= 20
    for client in clients:
        with pytest.raises(ConnectionResetError):
            await receive(client)
        client.close()


async def test_no_endpoint(node: Node, loopback_ip: LoopbackIp) -> None:
    own = loopback_ip()
    node.discovery.put(service("web", own))
    await node.listening(f"{own}:80")
    code, status, body = await curl(f"http://{own}/")
    assert (code, status) == (0, "503")
    assert "no_endpoint" in body and "default/web:80" in body


async def test_a_dead_backend_on_this_node(node: Node, loopback_ip: LoopbackIp) -> None:
    own = loopback_ip()
    node.discovery.put(service("web", own, ("n", own, 8080)))
    await node.listening(f"{own}:80")
    code, status, body = await curl(f"http://{own}/")
    assert (code, status) == (0, "502")
    assert "connection_refused" in body and "ECONNREFUSED" in body


async def test_a_tunnel_that_stays_away(
    node: Node, ip: str, loopback_ip: LoopbackIp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.attach.MAX_WAIT", 0.3)
    await node.tunnel.stop()
    code, status, body = await curl(f"http://{ip}/")
    assert (code, status) == (0, "503")
    assert "no_tunnel" in body
    await node.tunnel.start()


async def test_ports_of_other_protocols_do_not_wait_for_a_request(
    node: Node, loopback_ip: LoopbackIp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.refusals.PATIENCE", 3600.0)
    own = loopback_ip()
    node.discovery.put(service("db", own, name_of_port="mysql"))
    await node.listening(f"{own}:80")
    with socket.socket() as client, pytest.raises(ConnectionResetError):
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (own, 80))
        await receive(client)


async def test_grpc_is_told(node: Node, ip: str) -> None:
    """Its client waits for the server's SETTINGS before it asks."""
    import grpc

    node.tunnel.refusal = DENIED
    async with grpc.aio.insecure_channel(f"{ip}:80", [("grpc.enable_http_proxy", 0)]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/x.Y/Z")(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_the_log_tells_once(node: Node, ip: str, caplog: pytest.LogCaptureFixture) -> None:
    node.tunnel.refusal = DENIED
    with caplog.at_level("DEBUG", "causeway.proxy"):
        for _ in range(3):
            await curl(f"http://{ip}/")
    told = [record for record in caplog.records if record.message == "refused a client"]
    assert [record.levelname for record in told] == ["WARNING", "DEBUG", "DEBUG"]
    assert vars(told[0])["reason"] == "denied" and vars(told[0])["target"] == "default/web:80"
