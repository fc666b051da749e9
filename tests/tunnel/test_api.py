"""The tunnel's local gRPC API, and what becomes of streams that nobody answers."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lab.node import WITHOUT_RELAY
from protos import tunnel_pb2 as pb
from services.runtime.dial import reason
from tests.tunnel.conftest import Nodes
from tests.tunnel.local import PATIENCE, Attached, Backend, Exit, api, receive, reset, send, tcp_pair, until, was_reset

pytestmark = pytest.mark.slow  # real processes: time limits of seconds

NAME = "causeway.tunnel.v1.TunnelService"


@pytest.fixture
async def channel(nodes: Nodes) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"unix:{nodes.a.run_dir}/tunnel.sock") as channel:
        yield channel


async def test_reflection_lists_the_service(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {one.name for one in (await call.read()).list_services_response.service}
    assert {NAME, "grpc.health.v1.Health"} <= names
    call.cancel()


async def test_health(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", NAME):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def direct(nodes: Nodes) -> bool:
    """Whether a has left the relay, over which it may have come up first."""
    active = await nodes.a.active("b")
    return active is not None and active.kind in WITHOUT_RELAY


async def test_status_tells_of_the_session(nodes: Nodes) -> None:
    await until(lambda: direct(nodes), "the path is direct")
    status = await nodes.a.tunnel()
    assert status.node_name == "a" and status.listen_port == 20006
    session = next(session for session in status.sessions if session.peer == "b")
    assert session.state == "up" and len(session.id) == 8
    active = next(link for link in session.links if link.state == "active")
    assert active.kind in WITHOUT_RELAY and active.why and active.rtt.ToNanoseconds() > 0


async def test_ping(nodes: Nodes) -> None:
    await until(lambda: direct(nodes), "the path is direct")
    async with api(nodes.a) as stub:
        answer = await stub.PingPeer(pb.PingPeerRequest(node_name="b", count=3), timeout=PATIENCE)
        assert len(answer.rtts) == 3 and all(0 < rtt.ToNanoseconds() < 60e9 for rtt in answer.rtts)
        assert answer.link.kind in WITHOUT_RELAY


@pytest.mark.parametrize("name", ["nobody", "", "a"])
async def test_ping_of_a_node_that_is_none(nodes: Nodes, name: str) -> None:
    request = pb.PingPeerRequest(node_name=name, timeout={"seconds": 2})
    async with api(nodes.a) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.PingPeer(request, timeout=PATIENCE)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert reason(caught.value) == "UNKNOWN_NODE"
    assert len((caught.value.details() or "").splitlines()) == 1


# ---------------------------------------------------------------- offers


async def silent(_: Any) -> None:
    """A proxy that takes offers and never answers."""


async def test_an_offer_that_nobody_answers_is_refused(nodes: Nodes, attached: Attached, backend: Backend) -> None:
    async with Exit(nodes.b, silent) as deaf:
        client, accepted = tcp_pair()
        result = await attached.result(attached.open("b", backend.address, accepted))
        assert result.refusal.reason == pb.REFUSAL_REASON_NO_LISTENER and "b" in result.refusal.message
        assert len(deaf.offers) == 1
        assert await was_reset(client)
        client.close()


async def test_without_any_listener_too_and_a_late_one_still_serves(
    nodes: Nodes, attached: Attached, backend: Backend
) -> None:
    pairs = [tcp_pair() for _ in range(2)]
    number = attached.open("b", backend.address, pairs[0][1])
    result = await attached.result(number)
    assert result.refusal.reason == pb.REFUSAL_REASON_NO_LISTENER
    number = attached.open("b", backend.address, pairs[1][1])
    await asyncio.sleep(1.0)
    async with Exit(nodes.b) as late:
        assert not (await attached.result(number)).HasField("refusal")
        assert len(late.offers) == 1, "the refused one is not offered any more"
    for client, _ in pairs:
        client.close()
    (await backend.accept()).close()


@pytest.mark.parametrize("old_calls", [False, True])
@pytest.mark.parametrize("new_calls", [False, True])
async def test_a_new_listener_takes_over_with_what_the_old_one_left(
    nodes: Nodes, attached: Attached, backend: Backend, old_calls: bool, new_calls: bool
) -> None:
    async with Exit(nodes.b, silent, call=old_calls) as old:
        client, accepted = tcp_pair()
        number = attached.open("b", backend.address, accepted)
        await until(lambda: old.offers, "the old listener has the offer")
        async with Exit(nodes.b, call=new_calls) as new:
            await until(lambda: old.replaced, "the old listener ends")
            assert not (await attached.result(number)).HasField("refusal")
            assert [offer.token for offer in new.offers] == [offer.token for offer in old.offers]
            served = await backend.accept()
            await send(client, b"hello")
            assert await receive(served, 5) == b"hello"
            served.close()
            client.close()


@pytest.mark.parametrize("calls", [False, True])
async def test_offers_outlive_the_listener_that_had_them(nodes: Nodes, attached: Attached, calls: bool) -> None:
    """Many, with texts as long as they may be: more than one message holds, and in order."""
    addresses = [f"{calls}{number:01000}" for number in range(40)]
    clients = []

    def told(listener: Exit) -> list[pb.Offer]:
        return [offer for offer in listener.offers if offer.target.address in addresses]

    async with Exit(nodes.b, silent, call=calls) as old:
        for address in addresses:
            client, accepted = tcp_pair()
            attached.open("b", address, accepted, want=False, client="c" * 1024)
            clients.append(client)
        await until(lambda: len(told(old)) == len(addresses), "all are offered")
        assert [offer.target.address for offer in told(old)] == addresses
    async with Exit(nodes.b, silent, call=calls) as new:
        await until(lambda: len(told(new)) == len(addresses), "all are offered again")
        assert [offer.token for offer in told(new)] == [offer.token for offer in told(old)]
        for client in clients:
            reset(client)


async def test_a_caller_that_goes_before_the_answer(nodes: Nodes, attached: Attached, backend: Backend) -> None:
    """The late answer's socket is closed; nothing stays."""
    asked, answer = asyncio.Event(), asyncio.Event()
    ours, theirs = tcp_pair()

    async def slowly(_: pb.Offer) -> socket.socket:
        asked.set()
        await answer.wait()
        return theirs

    before = (await nodes.b.tunnel()).streams
    async with Exit(nodes.b, slowly):
        client, accepted = tcp_pair()
        attached.open("b", backend.address, accepted, want=False)
        await asked.wait()
        reset(client)

        async def over() -> bool:
            return (await nodes.b.tunnel()).streams == before

        await until(over, "b knows that the caller has gone")
        answer.set()
        assert await was_reset(ours)
    ours.close()
