"""Streams and flows between two real tunnel processes, with the sockets of real applications at both ends."""

import asyncio
import random
import socket

import pytest

from protos import tunnel_pb2 as pb
from services.runtime import keepalive
from tests.tunnel.conftest import Nodes
from tests.tunnel.local import (
    PATIENCE,
    UDP,
    Attached,
    Backend,
    Exit,
    descriptors,
    dial,
    receive,
    receive_all,
    reset,
    rss,
    send,
    tcp_pair,
    udp_pair,
    until,
    was_reset,
)

pytestmark = pytest.mark.slow  # real processes: two nodes and a relay a test

NOISE = random.Random(7).randbytes(8 << 20)


async def connect(attached: Attached, backend: Backend) -> tuple[socket.socket, socket.socket]:
    """A client, and the backend's end of its stream."""
    client, accepted = tcp_pair()
    number = attached.open("b", backend.address, accepted)
    served = await backend.accept()
    assert not (await attached.result(number)).HasField("refusal")
    return client, served


async def test_data_and_half_close_both_ways(exit_b: Exit, attached: Attached, backend: Backend) -> None:
    client, served = await connect(attached, backend)
    received = asyncio.create_task(receive_all(served))
    await send(client, NOISE)
    client.shutdown(socket.SHUT_WR)
    assert await received == NOISE
    # The client's side has ended; the other one goes on for as long as it likes.
    for part in (NOISE[:5], NOISE[5:70_000]):
        await send(served, part)
        assert await receive(client, len(part)) == part
    received = asyncio.create_task(receive_all(client))
    await send(served, NOISE[: 4 << 20])
    served.close()
    assert await received == NOISE[: 4 << 20]
    client.close()


async def test_the_kernel_watches_the_connections_of_a_stream_that_lasts(
    nodes: Nodes, attached: Attached, backend: Backend
) -> None:
    """At both ends, and of none that came over a Unix socket; see tests/proxy/test_half_open.py for what comes of it."""
    dialled: list[socket.socket] = []

    async def decide(offer: pb.Offer) -> socket.socket | pb.Refusal:
        made = await dial(offer)
        assert isinstance(made, socket.socket)
        dialled.append(made.dup())
        return made

    async with Exit(nodes.b, decide):
        client, accepted = tcp_pair()
        one, other = socket.socketpair()
        watched = accepted.dup()
        for given in (accepted, other):
            assert not (await attached.result(attached.open("b", backend.address, given))).HasField("refusal")
        for sock in (watched, *dialled):
            await until(lambda sock=sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), "it is watched")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == keepalive.IDLE
        for sock, served in ((client, await backend.accept()), (one, await backend.accept())):
            sock.setblocking(False)
            await send(sock, b"well")
            assert await receive(served, 4) == b"well"
            served.close()
        for sock in (client, one, watched, *dialled):
            sock.close()


async def test_the_backend_ends_first(exit_b: Exit, attached: Attached, backend: Backend) -> None:
    client, served = await connect(attached, backend)
    await send(served, b"bye")
    served.shutdown(socket.SHUT_WR)
    assert await receive_all(client) == b"bye"
    await send(client, b"still here")
    client.close()
    assert await receive_all(served) == b"still here"
    served.close()


async def test_what_is_sent_at_once_before_closing_arrives(exit_b: Exit, attached: Attached, backend: Backend) -> None:
    """Over a Unix socket, too, where the other end's close is seen at once."""
    for client, accepted in (tcp_pair(), socket.socketpair()):
        accepted.setblocking(False)
        client.setblocking(False)
        receiving = asyncio.create_task(_serve_once(backend))
        attached.open("b", backend.address, accepted, want=False)
        await send(client, NOISE[: 1 << 20])
        client.close()
        assert await receiving == NOISE[: 1 << 20]


async def _serve_once(backend: Backend) -> bytes:
    sock = await backend.accept()
    await asyncio.sleep(0.5)  # a slow backend: what came waits in the tunnel
    data = await receive_all(sock)
    sock.close()
    return data


async def test_the_head_comes_first(exit_b: Exit, attached: Attached, backend: Backend) -> None:
    client, accepted = tcp_pair()
    attached.open("b", backend.address, accepted, want=False, head=b"already read, ")
    await send(client, b"and the rest")
    client.shutdown(socket.SHUT_WR)
    served = await backend.accept()
    assert await receive_all(served) == b"already read, and the rest"
    served.close()
    client.close()


async def test_the_welcome_comes_before_any_byte_of_the_backend(
    exit_b: Exit, attached: Attached, backend: Backend
) -> None:
    """Also one that the client's socket does not take at once, from a backend that speaks first, and much."""
    for welcome in (b"welcome ", NOISE[:48_000]):
        client, accepted = tcp_pair()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)  # the least there is (socket(7))
        number = attached.open("b", backend.address, accepted, welcome=welcome, keep=True)
        served = await backend.accept()
        sending = asyncio.create_task(send(served, NOISE))
        assert not (await attached.result(number)).HasField("refusal")
        assert await receive(client, len(welcome)) == welcome
        assert await receive(client, len(NOISE)) == NOISE, "more than the stream's credit: none of it is lost"
        await sending
        client.close()
        served.close()


async def test_a_refused_client_that_is_kept_hears_nothing_from_the_tunnel(nodes: Nodes, attached: Attached) -> None:
    async def refuse(offer: pb.Offer) -> pb.Refusal:
        return pb.Refusal(reason=pb.REFUSAL_REASON_DENIED, message="no")

    async with Exit(nodes.b, refuse):
        client, accepted = tcp_pair()
        number = attached.open("b", "10.9.8.7:1", accepted.dup(), welcome=b"welcome", keep=True, head=b"early ")
        await send(client, b"bird")
        result = await attached.result(number)
        assert result.refusal.reason == pb.REFUSAL_REASON_DENIED
        rest = b"" if result.head == b"early bird" else accepted.recv(100)
        assert result.head + rest == b"early bird"
        accepted.sendall(b"sorry")
        accepted.close()
        assert await receive_all(client) == b"sorry"
        client.close()


@pytest.mark.parametrize("who", ["client", "backend"])
async def test_a_reset_arrives_as_a_reset(exit_b: Exit, attached: Attached, backend: Backend, who: str) -> None:
    client, served = await connect(attached, backend)
    await send(client, b"hello")
    assert await receive(served, 5) == b"hello"
    first, second = (client, served) if who == "client" else (served, client)
    reset(first)
    assert await was_reset(second)
    second.close()


async def test_a_reset_is_noticed_while_nobody_reads(exit_b: Exit, attached: Attached, backend: Backend) -> None:
    """The backend does not read, so the tunnel reads no more from the client, and still sees that it goes."""
    client, served = await connect(attached, backend)
    loop = asyncio.get_running_loop()
    filling = asyncio.create_task(loop.sock_sendall(client, bytes(64 << 20)))
    await asyncio.sleep(1.0)
    assert not filling.done()
    filling.cancel()
    await asyncio.gather(filling, return_exceptions=True)
    reset(client)
    assert await was_reset(served)
    served.close()


async def test_refusals_reach_the_caller(nodes: Nodes, attached: Attached) -> None:
    async def refuse(offer: pb.Offer) -> pb.Refusal:
        return pb.Refusal(reason=pb.REFUSAL_REASON_DENIED, message=f"{offer.target.address} is not for {offer.peer}")

    async with Exit(nodes.b, refuse) as proxy:
        client, accepted = tcp_pair()
        result = await attached.result(attached.open("b", "10.9.8.7:1", accepted, client="1.2.3.4:5"))
        assert result.refusal.reason == pb.REFUSAL_REASON_DENIED
        assert result.refusal.message == "10.9.8.7:1 is not for a"
        assert proxy.offers[0].client == "1.2.3.4:5"
        assert await was_reset(client)
        client.close()
    async with Exit(nodes.b):
        client, accepted = tcp_pair()
        result = await attached.result(attached.open("b", "127.0.0.1:1", accepted))
        assert result.refusal.reason == pb.REFUSAL_REASON_CONNECTION_REFUSED
        client.close()


async def test_nobody_knows_the_node(attached: Attached) -> None:
    """Discovery has asked, so that nobody need wait until his time is over."""
    client, accepted = tcp_pair()
    number = attached.open("nobody", "127.0.0.1:1", accepted, timeout={"seconds": 10 * round(PATIENCE)})
    result = await attached.result(number)
    assert result.refusal.reason == pb.REFUSAL_REASON_UNKNOWN_NODE and "nobody" in result.refusal.message
    assert await was_reset(client)
    client.close()


async def test_a_connection_that_is_itself_the_stream(nodes: Nodes, exit_b: Exit, backend: Backend) -> None:
    own = Attached(nodes.a)
    number = own.open("b", backend.address)
    served = await backend.accept()
    assert not (await own.result(number)).HasField("refusal")
    # Messages of every size, some larger than what fits a record at this moment: no byte may be cut off.
    sent = bytearray()
    receiving = asyncio.create_task(receive_all(served))
    for number in range(200):
        chunk = NOISE[number * 1000 : number * 1000 + (1, 100, 1500, 16_000, 60_000, 120_000)[number % 6]]
        await send(own.sock, chunk)
        sent += chunk
    own.sock.shutdown(socket.SHUT_WR)
    assert await receiving == sent
    # … and the other way, where the backend writes without borders.
    sending = asyncio.create_task(send(served, NOISE))
    back = bytearray()
    async with asyncio.timeout(60):
        while len(back) < len(NOISE):
            message = await asyncio.get_running_loop().sock_recv(own.sock, 1 << 20)
            assert message
            back += message
    assert back == NOISE
    await sending
    served.close()
    assert await receive_all(own.sock) == b""
    own.close()


async def test_short_streams_leave_nothing_behind(
    nodes: Nodes, exit_b: Exit, attached: Attached, backend: Backend
) -> None:
    pids = [node.pid("tunnel") for node in (nodes.a, nodes.b)]

    async def quiet() -> bool:
        return not any([(await node.tunnel()).streams for node in (nodes.a, nodes.b)])

    async def once(number: int) -> None:
        client, served = await connect(attached, backend)
        await send(client, b"q")
        assert await receive(served, 1) == b"q"
        sockets = [client, served]
        if number % 2:
            sockets.reverse()
        if number % 4 < 2:
            reset(sockets[0])
            assert await was_reset(sockets[1])
        else:
            sockets[0].close()
            assert await receive_all(sockets[1]) == b""
        sockets[1].close()

    for number in range(40):
        await once(number)
    await until(quiet, "all streams end")
    before = [descriptors(pid) for pid in pids]
    for number in range(200):
        await once(number)
    await until(quiet, "all streams end")
    # gRPC opens and closes some of its own.
    assert all(descriptors(pid) < was + 10 for pid, was in zip(pids, before, strict=True))


# ---------------------------------------------------------------- datagrams


async def test_datagrams_keep_their_borders_both_ways(exit_b: Exit, attached: Attached) -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    server.setblocking(False)
    loop = asyncio.get_running_loop()
    client, handed = udp_pair()
    address = f"127.0.0.1:{server.getsockname()[1]}"
    number = attached.open("b", address, handed, network=UDP, datagrams=[b"first", b"second"])
    async with asyncio.timeout(60):
        data, peer = await loop.sock_recvfrom(server, 65536)
        assert data == b"first"
        assert (await loop.sock_recvfrom(server, 65536))[0] == b"second"
        assert not (await attached.result(number)).HasField("refusal")
        for size in (0, 1, 500, 1472, 9000, 60_000, 65_507):
            client.send(NOISE[:size])
            assert (await loop.sock_recvfrom(server, 65536))[0] == NOISE[:size]
            server.sendto(NOISE[1 : size + 1], peer)
            assert await loop.sock_recv(client, 65536) == NOISE[1 : size + 1]
    client.close()
    server.close()


async def test_a_backend_that_goes_on_sending_does_not_keep_the_flow_of_a_client_that_is_gone(
    nodes: Nodes, exit_b: Exit, attached: Attached
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        client, handed = udp_pair()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        number = attached.open("b", address, handed, network=UDP, datagrams=[b"hello"])
        assert not (await attached.result(number)).HasField("refusal")
        async with asyncio.timeout(60):
            _, peer = await asyncio.get_running_loop().sock_recvfrom(server, 100)
        before = (await nodes.a.tunnel()).streams

        async def ended() -> bool:
            server.sendto(b"are you there?", peer)
            return (await nodes.a.tunnel()).streams < before

        for _ in range(20):
            assert not await ended(), "it is there"
        client.close()
        await until(ended, "the flow ends")  # while it is used, and so not for being idle


async def test_a_flow_without_descriptor_ends_when_its_connection_is_closed(nodes: Nodes, exit_b: Exit) -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    server.setblocking(False)
    loop = asyncio.get_running_loop()
    own = Attached(nodes.a)
    own.open("b", f"127.0.0.1:{server.getsockname()[1]}", network=UDP, want=False)
    await send(own.sock, b"question")
    async with asyncio.timeout(60):
        data, peer = await loop.sock_recvfrom(server, 65536)
        assert data == b"question"
        server.sendto(b"answer", peer)
        assert await loop.sock_recv(own.sock, 65536) == b"answer"
    before = (await nodes.a.tunnel()).streams
    own.close()

    async def gone() -> bool:
        return (await nodes.a.tunnel()).streams == before - 1

    await until(gone, "the flow ends")
    with pytest.raises(BlockingIOError):
        server.recv(100)  # no flood of empty datagrams
    server.close()


# ---------------------------------------------------------------- slow and dead ends


async def test_a_reader_that_stops_costs_bounded_memory_and_stops_nobody_else(
    nodes: Nodes, exit_b: Exit, attached: Attached, backend: Backend
) -> None:
    """FAILURES 11: sixty local readers that stop, while the path goes on."""
    pids = [node.pid("tunnel") for node in (nodes.a, nodes.b)]
    before = [rss(pid) for pid in pids]
    slow = [await connect(attached, backend) for _ in range(60)]
    loop = asyncio.get_running_loop()
    much = bytes(40 << 20)
    filling = [asyncio.create_task(loop.sock_sendall(client, much)) for client, _ in slow]
    client, served = await connect(attached, backend)
    for _ in range(10):
        receiving = asyncio.create_task(receive(served, len(NOISE)))
        await send(client, NOISE)
        assert await receiving == NOISE
    assert not any(task.done() for task in filling)
    grown = [rss(pid) - was for pid, was in zip(pids, before, strict=True)]
    assert max(grown) < 200 << 20, grown
    for task in filling:
        task.cancel()
    await asyncio.gather(*filling, return_exceptions=True)
    for pair in [*slow, (client, served)]:
        for sock in pair:
            sock.close()
