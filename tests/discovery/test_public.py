"""The public port against liars, garbage and crowds. The victim is a real process; the callers are ours."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import psutil
import pytest

from protos import discovery_pb2 as pb
from services.discovery import wire
from services.discovery.core.model import Signed
from services.runtime import dial
from services.runtime.diagnosis import GOOD, diagnose

from ..conftest import WriteConfig
from .caller import Caller
from .nodes import PATIENCE, Node, running, until

# Each test starts a process.
pytestmark = pytest.mark.slow


@pytest.fixture
async def victim(node_config: WriteConfig, loopback_ip: Callable[[], str]) -> AsyncIterator[tuple[Node, str]]:
    ip = loopback_ip()
    async with running(node_config("r", listenAddress=ip)) as (node,):

        async def listens() -> bool:
            return (await node.status()).sources["public"] == f"listening on {ip}:20008"

        await until(listens, "the public port is served")
        yield node, ip


@pytest.fixture
async def callers(victim: tuple[Node, str], node_config: WriteConfig) -> AsyncIterator[Callable[[str], Caller]]:
    made: list[Caller] = []

    def make(name: str) -> Caller:
        made.append(Caller(node_config(name), victim[1]))
        return made[-1]

    yield make
    for caller in made:
        await caller.channel.close()


async def test_a_node_speaks_only_for_itself(victim: tuple[Node, str], callers: Callable[[str], Caller]) -> None:
    a, b = callers("a"), callers("b")
    assert (await a.put(a.seal())).record.certificate
    # b's own record from a's connection; a record about b signed by a; one of another cluster.
    assert (await a.refused(b.seal()))[:2] == (grpc.StatusCode.PERMISSION_DENIED, "NAME_MISMATCH")
    code, reason, text = await a.refused(a.seal(node_name="b"))
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "NAME_MISMATCH")
    assert "'b'" in text and "'a'" in text and "speaks only for itself" in text
    assert (await a.refused(a.seal(cluster="other")))[1] == "NAME_MISMATCH"
    assert [peer.record.node_name for peer in (await victim[0].status()).peers] == ["a"]


async def test_what_is_not_signed_is_refused(victim: tuple[Node, str], callers: Callable[[str], Caller]) -> None:
    a, b = callers("a"), callers("b")
    good = a.seal()
    changed = wire.record_to_wire(a.record(tunnel_port=666)).SerializeToString()
    for bad in (
        replace(good, record=changed),
        replace(good, signature=b""),
        replace(good, signature=a.identity.sign(good.record)),  # signed without the prefix
        replace(good, certificate=b.identity.certificate_der),
        replace(good, certificate=b""),
        replace(good, record=b"\xff" * 100, signature=a.identity.sign(wire.SIGNED_PREFIX + b"\xff" * 100)),
        Signed(b"", b"", b""),
    ):
        code, reason, text = await a.refused(bad)
        assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "BAD_SIGNATURE"), text
    assert not (await victim[0].status()).peers


async def test_a_signed_record_with_nonsense_is_refused(callers: Callable[[str], Caller]) -> None:
    from services.discovery.core.model import Address

    a = callers("a")
    for changes in ({"addresses": (Address("not-an-ip"),)}, {"tunnel_port": 70_000}, {"revision": 0}):
        assert (await a.refused(a.seal(**changes)))[1] == "BAD_SIGNATURE"


async def test_records_out_of_time_are_refused(callers: Callable[[str], Caller]) -> None:
    a = callers("a")
    now = time.time()
    for issued in (now - 3600, now + 3600):
        code, reason, _ = await a.refused(a.seal(issued_at=issued, expires_at=issued + 600))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "EXPIRED")


async def test_size_is_bounded(victim: tuple[Node, str], callers: Callable[[str], Caller]) -> None:
    a = callers("a")
    code, reason, text = await a.refused(a.seal(instance_id="x" * 17_000))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_LARGE")
    assert "expected at most 16384" in text
    # Beyond the limit of a message it is not even read.
    assert (await a.refused(a.seal(instance_id="x" * 200_000)))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not (await victim[0].status()).peers


async def test_the_newest_record_is_given_to_whoever_asks(callers: Callable[[str], Caller]) -> None:
    a, b = callers("a"), callers("b")
    first, second = a.seal(revision=5), a.seal(revision=6)
    await a.put(second)
    await a.put(first)  # late, and of no consequence
    answer = await b.stub.GetRecord(pb.GetRecordRequest(node_name="a"), timeout=PATIENCE)
    assert wire.signed_from_wire(answer.record) == second
    assert wire.unseal(b.identity, second).revision == 6
    own = await b.stub.GetRecord(pb.GetRecordRequest(node_name="r"), timeout=PATIENCE)
    ping = await b.stub.Ping(pb.PingRequest(), timeout=PATIENCE)
    assert own.record == ping.record and wire.unseal(b.identity, wire.signed_from_wire(ping.record)).node_name == "r"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await b.stub.GetRecord(pb.GetRecordRequest(node_name="b"), timeout=PATIENCE)
    assert (caught.value.code(), dial.reason(caught.value)) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_NODE")


async def test_who_asks_for_a_key_gets_servers_and_no_record(callers: Callable[[str], Caller]) -> None:
    a = callers("a")
    await a.put(a.seal())
    request = pb.FindNodeRequest(node_name="a", callback=["nonsense", "127.0.0.1:0", "[::1:5", "1.2.3.4:99999"] * 9)
    answer = await a.stub.FindNode(request, timeout=PATIENCE)
    assert wire.unseal(a.identity, wire.signed_from_wire(answer.record)).node_name == "a"
    assert not answer.servers, "nobody has answered a call of the victim"
    answer = await a.stub.FindNode(pb.FindNodeRequest(key=bytes(32)), timeout=PATIENCE)
    assert not answer.HasField("record")
    for nonsense in (pb.FindNodeRequest(), pb.FindNodeRequest(key=b"short"), pb.FindNodeRequest(key=bytes(33))):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await a.stub.FindNode(nonsense, timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_former_run_is_handed_back(callers: Callable[[str], Caller]) -> None:
    a = callers("a")
    first = a.seal(revision=5, instance_id="first")
    assert not (await a.put(first)).HasField("conflicting")
    assert not (await a.put(a.seal(revision=6, instance_id="first"))).HasField("conflicting")
    newer = a.seal(revision=7, instance_id="second")
    answer = await a.put(newer)
    assert wire.unseal(a.identity, wire.signed_from_wire(answer.conflicting)).revision == 6
    # One that comes too late learns what it has to outrun.
    answer = await a.put(a.seal(revision=6, instance_id="first"))
    assert wire.signed_from_wire(answer.conflicting) == newer


async def test_a_caller_under_the_victims_own_name_raises_an_alarm(
    victim: tuple[Node, str], node_config: WriteConfig, short_path: Path
) -> None:
    twin = short_path / "twin"
    twin.mkdir()
    (twin / "c.yaml").write_text(victim[0].config.read_text())
    (twin / "psk").write_text((victim[0].config.parent / "psk").read_text())
    r = Caller(twin / "c.yaml", victim[1])
    try:
        answer = await r.put(r.seal())
    finally:
        await r.channel.close()
    status = await victim[0].status()
    assert "duplicate identity" in status.warnings[0] and "instance of r" in status.warnings[0]
    assert not status.peers and status.self.instance_id != "instance of r"
    assert wire.unseal(r.identity, wire.signed_from_wire(answer.conflicting)).instance_id == status.self.instance_id


@pytest.mark.parametrize(
    ("stranger", "reason"),
    [({"psk": "another-secret-0123456789-0123456789"}, "wrong-psk"), ({"cluster": "elsewhere"}, "wrong-cluster")],
)
async def test_a_stranger_is_not_served_and_both_sides_are_told_why(
    victim: tuple[Node, str], node_config: WriteConfig, stranger: dict[str, str], reason: str
) -> None:
    caller = Caller(node_config("s", **stranger), victim[1])
    try:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.stub.Ping(pb.PingRequest(), timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        for _ in range(3):
            assert f": {reason}: " in await diagnose(caller.identity, victim[1], 20008, "r")
        told = [line for line in victim[0].said().splitlines() if "visitor refused" in line]
        assert len(told) == 1 and f"reason={reason}" in told[0], "once, not with each attempt"
    finally:
        await caller.channel.close()


async def test_who_is_welcome_is_told_so(victim: tuple[Node, str], callers: Callable[[str], Caller]) -> None:
    said = await diagnose(callers("a").identity, victim[1], 20008)
    assert said.endswith(GOOD)


async def test_a_flood_of_half_open_connections_costs_bounded_memory_and_nobody_else(
    victim: tuple[Node, str], callers: Callable[[str], Caller]
) -> None:
    node, ip = victim
    process = psutil.Process(node.pid)
    a = callers("a")
    await a.put(a.seal(revision=1))
    before = process.memory_info().rss
    loop = asyncio.get_running_loop()
    crowd: list[socket.socket] = []
    try:
        for index in range(600):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            crowd.append(sock)
            await loop.sock_connect(sock, (ip, 20008))
            # Silence, garbage, plain HTTP/2, and the first bytes of a handshake that never goes on.
            greeting = (b"", b"\x00" * 64, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01")[index % 4]
            try:
                await loop.sock_sendall(sock, greeting)
            except OSError:
                pass  # shown the door already
        # A node that comes in the middle of it is served.
        late = callers("b")
        await late.put(late.seal())
        grown = process.memory_info().rss - before
        assert grown < 64 << 20, f"{grown >> 20} MiB for 600 connections"

        async def gone() -> bool:
            return len(process.net_connections("tcp")) < 20

        await until(gone, "connections that do not shake hands are closed")
    finally:
        for sock in crowd:
            sock.close()
    assert len((await node.status()).peers) == 2
