"""Tunnels that stop, die, freeze, or are started twice: what ends with them, and what goes on."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator

import pytest

from lab.node import Node
from protos import tunnel_pb2 as pb
from tests.tunnel.conftest import Nodes
from tests.tunnel.local import Attached, Backend, Exit, receive, rss, send, tcp_pair, until, was_reset

pytestmark = pytest.mark.slow  # real processes: nodes that end and come back


@pytest.fixture
async def pair(ground: Nodes) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes of this test alone, both up, with a session."""
    if not ground.r.running("discovery"):
        await ground.start(ground.r)
    number = len(list(ground.folder.iterdir()))
    nodes = ground.make(f"a{number}", modules=QUICK), ground.make(f"b{number}", modules=QUICK)
    try:
        await ground.start(*nodes)
        await until(lambda: nodes[0].ping(nodes[1].name), "they reach each other")
        yield nodes
    except BaseException:
        for node in nodes:
            print(f"--- {node.name}\n{node.tail('tunnel')}")
        raise
    finally:
        for node in nodes:
            if node.running("tunnel"):
                node.signal(signal.SIGCONT, "tunnel")
            await node.stop(timeout=5)


# A session is given up after 6 s without a path, so that tests need not wait for a minute.
QUICK = {"edgeTunnel": {"sessionHoldSeconds": 6}}


@pytest.fixture(scope="module", autouse=True)
def relay_ends(ground: Nodes) -> None:
    yield
    asyncio.run(ground.r.stop(timeout=5))


async def connect(one: Attached, peer: Node, backend: Backend) -> tuple[socket.socket, socket.socket]:
    client, accepted = tcp_pair()
    number = one.open(peer.name, backend.address, accepted)
    result = await one.result(number)
    assert not result.HasField("refusal"), result
    served = await backend.accept()
    await send(client, b"hello")
    assert await receive(served, 5) == b"hello"
    return client, served


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("which", ["caller", "exit"])
async def test_streams_end_with_their_tunnel_and_the_next_one_works(
    pair: tuple[Node, Node], backend: Backend, how: signal.Signals, which: str
) -> None:
    a, b = pair
    victim = a if which == "caller" else b
    one = Attached(a)
    async with Exit(b):
        client, served = await connect(one, b, backend)
        victim.signal(how, "tunnel")
        survivor = served if which == "caller" else client
        ended = asyncio.create_task(was_reset(survivor))
        await until(lambda: not victim.running("tunnel"), "the tunnel ends")
        victim.start("tunnel")
        await victim.ready("tunnel")
        if which == "caller":
            one.close()
            one = Attached(a)
    async with Exit(b):
        # The first attempt after the restart must do: it waits for the new session, not for the old one's end.
        again = await connect(one, b, backend)
        assert await ended, "the old stream ends with a reset"
    for sock in (client, served, *again):
        sock.close()
    one.close()


async def test_connections_made_while_the_exit_restarts_are_served(pair: tuple[Node, Node], backend: Backend) -> None:
    a, b = pair
    one = Attached(a)
    async with Exit(b):
        client, served = await connect(one, b, backend)
    await b.kill("tunnel")
    await until(lambda: no_path(a, b), "a knows that b is away")
    clients = []
    for _ in range(5):
        waiting, accepted = tcp_pair()
        one.open(b.name, backend.address, accepted)
        clients.append(waiting)
        await send(waiting, b"made in between")
    b.start("tunnel")
    await b.ready("tunnel")
    async with Exit(b):
        for waiting in clients:
            backend_end = await backend.accept()
            assert await receive(backend_end, 15) == b"made in between"
            backend_end.close()
            waiting.close()
    for sock in (client, served):
        sock.close()
    one.close()


async def no_path(a: Node, b: Node) -> bool:
    return not [link for link in await a.links(b.name) if link.state in ("active", "standby")]


async def test_a_peer_that_freezes_costs_bounded_memory_and_comes_back(
    pair: tuple[Node, Node], backend: Backend
) -> None:
    """Frozen for less than the session is held: all goes on. What could not be sent is bounded."""
    a, b = pair
    one = Attached(a)
    async with Exit(b):
        streams = [await connect(one, b, backend) for _ in range(4)]
        loop = asyncio.get_running_loop()
        before = rss(a.pid("tunnel"))
        b.signal(signal.SIGSTOP, "tunnel")
        filling = [asyncio.create_task(loop.sock_sendall(client, bytes(100 << 20))) for client, _ in streams]
        await asyncio.sleep(4.0)
        assert rss(a.pid("tunnel")) - before < 100 << 20
        b.signal(signal.SIGCONT, "tunnel")
        for _, served in streams:
            assert await receive(served, 10 << 20) == bytes(10 << 20)
        for task in filling:
            task.cancel()
        await asyncio.gather(*filling, return_exceptions=True)
        for pair_of_sockets in streams:
            for sock in pair_of_sockets:
                sock.close()
    one.close()


async def test_a_peer_that_never_comes_back_ends_streams_with_a_reason(
    pair: tuple[Node, Node], backend: Backend
) -> None:
    a, b = pair
    one = Attached(a)
    async with Exit(b):
        client, served = await connect(one, b, backend)
        b.signal(signal.SIGSTOP, "tunnel")
        await send(client, b"are you there?")
        assert await was_reset(client)
        await until(lambda: f"no path to {b.name} for 6 s" in a.log("tunnel").read_text(), "a's log says why")
        # What is opened now is refused in the time that the caller gives.
        waiting, accepted = tcp_pair()
        number = one.open(b.name, backend.address, accepted, timeout={"seconds": 2})
        result = await one.result(number)
        assert result.refusal.reason == pb.REFUSAL_REASON_NO_PATH and b.name in result.refusal.message
        assert await was_reset(waiting)
        b.signal(signal.SIGCONT, "tunnel")
        again = await connect(one, b, backend)
        for sock in (client, waiting, served, *again):
            sock.close()
    one.close()


async def test_a_second_tunnel_in_the_same_place_does_no_harm(pair: tuple[Node, Node], backend: Backend) -> None:
    a, b = pair
    twin = Node(a.place, a.folder, psk=(a.folder / "psk").read_text().strip(), relay_mode="off")
    twin.start("tunnel")
    try:
        await until(lambda: not twin.running("tunnel"), "the second one gives up")
    finally:
        await twin.stop()
    one = Attached(a)
    async with Exit(b):
        for sock in await connect(one, b, backend):
            sock.close()
    one.close()


async def test_stopping_is_quick_and_leaves_no_sockets(pair: tuple[Node, Node], backend: Backend) -> None:
    a, b = pair
    one = Attached(a)
    async with Exit(b):
        client, served = await connect(one, b, backend)
        assert (await a.stop("tunnel"))["tunnel"] == 0
        assert await was_reset(served)
        assert not (a.run_dir / "tunnel.attach").exists()
        with pytest.raises(OSError):
            Attached(a)
        client.close()
        served.close()
    one.close()
    assert "Traceback" not in a.log("tunnel").read_text() + b.log("tunnel").read_text()
