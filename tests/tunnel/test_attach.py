"""The attach socket in wrong hands: whoever misuses it harms himself only, and no descriptor stays behind."""

import array
import asyncio
import os
import random
import socket
import tempfile
from collections.abc import AsyncIterator

import pytest

from protos import tunnel_pb2 as pb
from tests.tunnel.conftest import Nodes
from tests.tunnel.local import (
    UDP,
    Attached,
    Backend,
    Exit,
    descriptors,
    readable,
    receive,
    send,
    tcp_pair,
    udp_pair,
    until,
    was_reset,
)

pytestmark = pytest.mark.slow  # real processes


@pytest.fixture(autouse=True)
async def works_on_and_leaks_nothing(nodes: Nodes, exit_b: Exit, backend: Backend) -> AsyncIterator[None]:
    """After each of these tests a well-behaved client is served as before, and all descriptors are back."""

    async def serve() -> None:
        one = Attached(nodes.a)
        client, accepted = tcp_pair()
        number = one.open("b", backend.address, accepted)
        served = await backend.accept()
        assert not (await one.result(number)).HasField("refusal")
        await send(client, b"fine")
        assert await receive(served, 4) == b"fine"
        for sock in (client, served):
            sock.close()
        one.close()

    await serve()
    pid = nodes.a.pid("tunnel")
    before = descriptors(pid)
    yield
    await serve()
    await until(lambda: descriptors(pid) <= before + 5, f"descriptors fall to {before} again")


GARBAGE = [
    b"garbage",
    b"\xff" * 1000,
    bytes(60_000),
    pb.Attach().SerializeToString(),
    pb.Attach(id=3).SerializeToString(),
    pb.Attach(open=pb.Outbound(node="b")).SerializeToString()[:-1],
    pb.Attach(open=pb.Outbound(node="b", timeout={"seconds": 1 << 62})).SerializeToString(),
    pb.Attach(listen=pb.Listen()).SerializeToString()[:-1] + b"\x01",
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize("descriptors_sent", [0, 1])
async def test_garbage_ends_the_connection(nodes: Nodes, data: bytes, descriptors_sent: int) -> None:
    one = Attached(nodes.a)
    kept, given = tcp_pair()
    one.give(data, *[given] * descriptors_sent)
    assert await one.ended()
    if descriptors_sent:
        given.close()
        await was_reset(kept)  # by an end or a reset, but at once
    kept.close()
    given.close()
    one.close()


async def test_a_listener_that_asks_again(nodes: Nodes, backend: Backend) -> None:
    """It takes over from nobody, and hears of each offer once."""
    one, fresh = Attached(nodes.a), Attached(nodes.b)
    client, accepted = tcp_pair()
    one.give(pb.Attach(listen=pb.Listen()))
    fresh.open("a", backend.address, accepted, want=False)
    token = (await one.result(0)).offers[0].token
    for _ in range(3):
        one.give(pb.Attach(listen=pb.Listen()))
    one.give(pb.Attach(refuse=pb.Refuse(token=token)))
    assert await was_reset(client), "all has been read"
    assert one.silent()
    for sock in (client, one, fresh):
        sock.close()


async def test_a_listener_that_becomes_a_stream_or_brings_a_descriptor(nodes: Nodes, backend: Backend) -> None:
    """Streams that b asks for are for who listened last, unless that connection is a stream itself now."""
    client, given = tcp_pair()
    one, fresh = Attached(nodes.a), Attached(nodes.b)
    one.give(pb.Attach(listen=pb.Listen()), given)
    await was_reset(client)  # by an end or a reset, but at once
    one.open("b", backend.address, want=False)
    served = await backend.accept()
    caller, accepted = tcp_pair()
    fresh.open("a", backend.address, accepted, want=False)
    await send(served, b"of the stream")
    await readable(one.sock)
    assert one.sock.recv(100) == b"of the stream"
    async with Exit(nodes.a) as late:
        await until(lambda: late.offers, "the offer waited for a listener")
        assert one.silent(), "nothing is said on what is a stream"
        dialled = await backend.accept()
    for sock in (client, served, caller, dialled):
        sock.close()
    one.close()
    fresh.close()


async def test_random_garbage(nodes: Nodes) -> None:
    dice = random.Random(3)
    good = pb.Attach(id=1, open=pb.Outbound(node="b", target=pb.Target(network=1, address="127.0.0.1:1")))
    for _ in range(200):
        spoilt = bytearray(good.SerializeToString())
        for _ in range(dice.randint(1, 4)):
            spoilt[dice.randrange(len(spoilt))] = dice.randrange(256)
        one = Attached(nodes.a)
        kept, given = tcp_pair()
        one.give(bytes(spoilt), given)
        kept.close()
        one.close()


async def test_too_long_a_message(nodes: Nodes) -> None:
    one = Attached(nodes.a)
    kept, given = tcp_pair()
    one.open("b", "x" * 70_000, given)
    assert await one.ended()
    kept.close()
    one.close()


async def test_more_descriptors_than_one(nodes: Nodes, backend: Backend) -> None:
    """The first counts, the others are closed; beyond what is looked at, the message is refused."""
    pairs = [tcp_pair() for _ in range(3)]
    one = Attached(nodes.a)
    number = one.open("b", backend.address, *[given for _, given in pairs])
    assert not (await one.result(number)).HasField("refusal")
    served = await backend.accept()
    for kept, _ in pairs[1:]:
        assert await receive(kept, 1) == b""
    await send(pairs[0][0], b"x")
    assert await receive(served, 1) == b"x"
    served.close()
    for kept, _ in pairs:
        kept.close()
    many = [tcp_pair() for _ in range(20)]
    one.open("b", backend.address, *[given for _, given in many])
    assert await one.ended()
    for kept, _ in many:
        kept.close()
    one.close()


async def test_texts_that_are_too_long(nodes: Nodes, attached: Attached) -> None:
    before = (await nodes.a.tunnel()).streams
    for address, client in (("x" * 2000, ""), ("127.0.0.1:1", "y" * 2000)):
        kept, given = tcp_pair()
        result = await attached.result(attached.open("b", address, given, client=client))
        assert result.refusal.reason == pb.REFUSAL_REASON_LIMIT and "1024" in result.refusal.message
        assert await was_reset(kept)
        kept.close()
    assert (await nodes.a.tunnel()).streams <= before, "what was refused is no stream"


async def test_descriptors_that_are_no_connection(nodes: Nodes, attached: Attached, backend: Backend) -> None:
    with tempfile.TemporaryFile() as file:
        pipe = os.pipe()
        listening = socket.create_server(("127.0.0.1", 0))
        unconnected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams = udp_pair()
        streams = tcp_pair()
        messages = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for number, network, what in (
            (file.fileno(), 1, "no socket"),
            (pipe[0], 1, "no socket"),
            (listening.fileno(), 1, "cannot be used"),
            (unconnected.fileno(), UDP, "cannot be used"),
            (datagrams[1].fileno(), 1, "datagram"),
            (streams[1].fileno(), UDP, "datagram"),
            (messages[1].fileno(), 1, "wrong kind"),
        ):
            asked = attached.open("b", backend.address, number, network=network)
            result = await attached.result(asked)
            assert result.refusal.reason == pb.REFUSAL_REASON_DENIED and what in result.refusal.message
        for descriptor in pipe:
            os.close(descriptor)
        for sock in (listening, unconnected, *datagrams, *streams, *messages):
            sock.close()


async def test_answers_to_offers_that_were_never_made(nodes: Nodes, attached: Attached) -> None:
    kept, given = tcp_pair()
    attached.give(pb.Attach(accept=pb.Accept(token=b"x" * 16)), given)
    assert await was_reset(kept)
    attached.give(pb.Attach(accept=pb.Accept(token=b"")))
    attached.give(pb.Attach(refuse=pb.Refuse(token=os.urandom(16))))
    kept.close()


async def test_an_offer_accepted_without_a_descriptor_or_with_a_wrong_one(
    nodes: Nodes, exit_b: Exit, attached: Attached, backend: Backend
) -> None:
    async def nothing(_: pb.Offer) -> None:
        pass

    dialling, exit_b.decide = exit_b.decide, nothing
    exit_b.offers.clear()
    at_b = Attached(nodes.b)
    for count, wrong in enumerate((False, True), start=1):
        client, accepted = tcp_pair()
        number = attached.open("b", backend.address, accepted)
        await until(lambda count=count: len(exit_b.offers) == count, "the offer is there")
        with tempfile.TemporaryFile() as file:
            at_b.give(pb.Attach(accept=pb.Accept(token=exit_b.offers[-1].token)), *[file.fileno()] * wrong)
        result = await attached.result(number)
        assert result.HasField("refusal")
        client.close()
    at_b.close()
    exit_b.decide = dialling


async def test_connections_that_close_at_once(nodes: Nodes, backend: Backend) -> None:
    for _ in range(300):
        Attached(nodes.a).close()
    # Whoever hands over and goes is served all the same, a hundred streams at a time.
    one = Attached(nodes.a)
    clients = []
    for _ in range(100):
        client, accepted = tcp_pair()
        one.open("b", backend.address, accepted, want=False)
        clients.append(client)
    one.close()
    for number, client in enumerate(clients):
        await send(client, number.to_bytes(1))
    seen = set()
    for _ in clients:
        served = await backend.accept()
        seen.add(await receive(served, 1))
        served.close()
    assert len(seen) == 100
    for client in clients:
        client.close()


async def test_results_that_nobody_reads(nodes: Nodes, backend: Backend) -> None:
    """They are dropped when the connection is full; streams do not wait for them."""
    one = Attached(nodes.a)
    one.sock.setblocking(True)
    for _ in range(600):
        client, accepted = tcp_pair()
        one.open("b", "no port", accepted)
        client.close()
    client, accepted = tcp_pair()
    one.open("b", backend.address, accepted)
    await send(client, b"x")
    served = await backend.accept()
    assert await receive(served, 1) == b"x"
    for sock in (client, served):
        sock.close()
    one.close()


async def test_too_many_connections_are_sent_away(nodes: Nodes) -> None:
    held = []
    sent_away = 0
    try:
        for _ in range(1100):
            try:
                held.append(Attached(nodes.a))
            except BlockingIOError:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        for one in held:
            try:
                sent_away += one.sock.recv(1) == b""
            except BlockingIOError:
                pass
        assert sent_away >= len(held) - 1024
    finally:
        for one in held:
            one.close()


async def test_scm_rights_without_data(nodes: Nodes) -> None:
    one = Attached(nodes.a)
    kept, given = tcp_pair()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [given.fileno()]))]
    one.sock.sendmsg([b""], rights)
    given.close()
    assert await one.ended()
    assert await receive(kept, 1) == b""
    kept.close()
    one.close()
