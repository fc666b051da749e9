"""The same identities under gRPC: mutual TLS on a real port, and the diagnosis of what fails."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from protos import discovery_pb2 as pb
from protos import discovery_pb2_grpc as rpc
from services.runtime import serve
from services.runtime.diagnosis import diagnose
from services.runtime.identity import Identity, Rejection
from tests.runtime.nodes import OTHER_PSK, Clock, identity, load
from tests.runtime.test_identity import node, run_ca


class Peer(rpc.PeerServiceServicer):
    """Answers a ping with who it thinks the caller is."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def Ping(self, request: pb.PingRequest, context: Any) -> pb.PingResponse:
        spiffe_id = context.auth_context()["peer_spiffe_id"][0].decode()
        try:
            caller = self._identity.caller(context.auth_context())
        except Rejection as rejection:
            await serve.abort(context, grpc.StatusCode.PERMISSION_DENIED, rejection.reason, rejection.message)
        return pb.PingResponse(record=pb.SignedRecord(record=f"{caller} {spiffe_id}".encode()))

    async def GetRecord(self, request: pb.GetRecordRequest, context: Any) -> pb.GetRecordResponse:
        await serve.abort(context, grpc.StatusCode.NOT_FOUND, "UNKNOWN_NODE", "not asked for here")

    async def PutRecord(self, request: pb.PutRecordRequest, context: Any) -> pb.PutRecordResponse:
        await serve.abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "TABLE_FULL", "not asked for here")


@asynccontextmanager
async def served(identity: Identity, ip: str) -> AsyncIterator[int]:
    server = grpc.aio.server(options=list(serve.PUBLIC_OPTIONS))
    rpc.add_PeerServiceServicer_to_server(Peer(identity), server)
    port = server.add_secure_port(f"{ip}:0", identity.server_credentials())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def ping(caller: Identity, ip: str, port: int, expected: str) -> str:
    options = (("grpc.ssl_target_name_override", caller.target_name(expected)),)
    async with grpc.aio.secure_channel(f"{ip}:{port}", caller.channel_credentials(), options=options) as channel:
        stub = rpc.PeerServiceStub(channel)
        answer = await stub.Ping(pb.PingRequest(), timeout=20)
        return bytes(answer.record.record).decode()


async def test_each_knows_the_other(short_path: Path, loopback_ip: Callable[[], str]) -> None:
    a, b, ip = identity(short_path, "edge-a"), identity(short_path, "edge-b"), loopback_ip()
    async with served(b, ip) as port:
        assert await ping(a, ip, port, "edge-b") == "edge-a spiffe://default/node/edge-a"
        assert "in order" in await diagnose(a, ip, port, "edge-b")


async def test_long_names_work(short_path: Path, loopback_ip: Callable[[], str]) -> None:
    name = "a" * 60 + ".b" * 90
    a, ip = identity(short_path, "edge-a"), loopback_ip()
    b = Identity.load(load(short_path, "edge-b").model_copy(update={"node_name": name}))
    async with served(b, ip) as port:
        assert (await ping(a, ip, port, name)).startswith("edge-a ")
        assert (await diagnose(a, ip, port, "edge-c")).startswith(f"{ip}:{port}: name-mismatch: expected edge-c")


async def test_another_name_is_refused(short_path: Path, loopback_ip: Callable[[], str]) -> None:
    a, b, ip = identity(short_path, "edge-a"), identity(short_path, "edge-b"), loopback_ip()
    async with served(b, ip) as port:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ping(a, ip, port, "edge-c")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        said = await diagnose(a, ip, port, "edge-c")
        assert "name-mismatch: expected edge-c, but the certificate says edge-b" in said


@pytest.mark.parametrize(
    ("keys", "reason"), [({"psk": OTHER_PSK}, "wrong-psk"), ({"cluster": "blue"}, "wrong-cluster")]
)
async def test_strangers_are_refused_and_the_diagnosis_says_why(
    short_path: Path, loopback_ip: Callable[[], str], keys: dict[str, Any], reason: str
) -> None:
    a, b, ip = identity(short_path, "edge-a"), identity(short_path, "edge-b", **keys), loopback_ip()
    async with served(b, ip) as port:
        with pytest.raises(grpc.aio.AioRpcError):
            await ping(a, ip, port, "edge-b")
        said = await diagnose(a, ip, port, "edge-b")
        assert said.startswith(f"{ip}:{port}: {reason}: ")
        assert "\n" not in said


async def test_our_own_expired_certificate_is_diagnosed(short_path: Path, loopback_ip: Callable[[], str]) -> None:
    old = Clock()
    old.now -= 30 * 86400
    a, b, ip = identity(short_path, "edge-a", old), identity(short_path, "edge-b"), loopback_ip()
    old.now += 30 * 86400
    async with served(b, ip) as port:
        with pytest.raises(grpc.aio.AioRpcError):
            await ping(a, ip, port, "edge-b")
        said = await diagnose(a, ip, port, "edge-b")
        assert "our own certificate is not good: certificate-expired" in said
        # By our clock it is good, by theirs it is not: that much can be said.
        old.now -= 30 * 86400
        b_clock_ahead = await diagnose(a, ip, port)
        assert "certificate-not-yet-valid" in b_clock_ahead


async def test_both_sides_take_renewed_credentials(short_path: Path, loopback_ip: Callable[[], str]) -> None:
    clock, ip = Clock(), loopback_ip()
    clock.now -= 60_000  # gRPC itself looks at the real clock
    a, b = identity(short_path, "edge-a", clock), identity(short_path, "edge-b", clock)
    async with served(b, ip) as port:
        assert await ping(a, ip, port, "edge-b")
        old = (a.certificate_der, b.certificate_der)
        clock.now += 60_000
        assert a.refresh()
        assert b.refresh()
        assert await ping(a, ip, port, "edge-b")
        shown = await _certificate(a, ip, port)
        assert shown == b.certificate_der
        assert shown not in old
        # A new PSK on both: the same server, not restarted, speaks under the new CA.
        for name in ("edge-a", "edge-b"):
            (short_path / f"default.{name}/psk").write_text(OTHER_PSK)
        assert b.refresh()
        with pytest.raises(grpc.aio.AioRpcError):
            await ping(a, ip, port, "edge-b")
        assert a.refresh()
        assert await ping(a, ip, port, "edge-b")


async def _certificate(identity: Identity, ip: str, port: int) -> bytes | None:
    import asyncio

    from services.runtime.tls import FramedTls

    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (ip, port))
    channel = await FramedTls.start(sock, identity, server=False)
    channel.abort()
    return channel.endpoint.peer_certificate()


async def test_revoked_callers_are_refused_by_the_servicer(short_path: Path, loopback_ip: Callable[[], str]) -> None:
    run_ca("init", "--out", short_path / "ca")
    a, b, ip = node(short_path, "edge-a"), node(short_path, "edge-b"), loopback_ip()
    async with served(b, ip) as port:
        assert (await ping(a, ip, port, "edge-b")).startswith("edge-a ")
        run_ca("revoke", "edge-a", "--ca", short_path / "ca")
        (short_path / "default.edge-b/ca.crl").write_bytes((short_path / "ca/ca.crl").read_bytes())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ping(a, ip, port, "edge-b")
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "revoked" in (caught.value.details() or "")


async def test_callers_without_certificate_never_reach_a_servicer(
    short_path: Path, loopback_ip: Callable[[], str]
) -> None:
    b, ip = identity(short_path, "edge-b"), loopback_ip()
    async with served(b, ip) as port:
        credentials = grpc.ssl_channel_credentials(b.credentials.authority.pem())
        options = (("grpc.ssl_target_name_override", b.target_name("edge-b")),)
        async with grpc.aio.secure_channel(f"{ip}:{port}", credentials, options=options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rpc.PeerServiceStub(channel).Ping(pb.PingRequest(), timeout=20)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_diagnosis_of_ports_that_are_no_grpc(short_path: Path, loopback_ip: Callable[[], str]) -> None:
    a, ip = identity(short_path, "edge-a"), loopback_ip()
    with socket.create_server((ip, 0)) as silent:
        port = silent.getsockname()[1]
        assert "no answer within" in await diagnose(a, ip, port, timeout=0.2)
    assert "refused" in (await diagnose(a, ip, port)).lower()

    import asyncio

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await writer.drain()
        await reader.read(100)
        writer.close()

    async with await asyncio.start_server(talk, ip, 0) as server:
        said = await diagnose(a, ip, server.sockets[0].getsockname()[1])
        assert "not TLS" in said
