"""Which relays a tunnel holds reservations at, when some of them do not answer, lie, or return."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from lab.node import Node
from protos import relay_pb2
from services.runtime import config
from services.runtime.identity import Identity
from services.runtime.tls import FramedTls, TlsError
from tests.tunnel.conftest import PSK, Nodes
from tests.tunnel.local import until

pytestmark = pytest.mark.slow  # real processes: relays that end and come back


@pytest.fixture
async def relay(ground: Nodes) -> AsyncIterator[Node]:
    await ground.start(ground.r)
    yield ground.r
    await ground.r.stop(timeout=5)


async def reserved(node: Node) -> set[str]:
    return {it.relay for it in (await node.tunnel()).relays if it.state == "reserved"}


async def test_the_fourth_relay_is_asked_when_the_first_three_are_dead(ground: Nodes, relay: Node) -> None:
    dead = [ground.ground.place(f"dead{number}") for number in range(3)]
    node = Node(ground.ground.place("x"), ground.folder / "x", relays=[*dead, relay.place], psk=PSK, relay_mode="off")
    node.start("discovery", "tunnel")
    try:
        await node.ready("discovery", "tunnel")

        async def there() -> bool:
            return await reserved(node) == {"r"}

        await until(there, "a reservation at the one that lives")
        states = {it.relay: it.state for it in (await node.tunnel()).relays}
        assert all("Connection refused" in states[place.name] for place in dead)
    finally:
        await node.stop(timeout=5)


ANSWERS = {
    "garbage": [b"\xff" * 50],
    "empty": [b""],
    "another body": [relay_pb2.ControlMessage(reserve=relay_pb2.Reserve()).SerializeToString()],
    "a lease of more years than there are": [
        relay_pb2.ControlMessage(welcome=relay_pb2.Welcome(node_name="liar", observed="nonsense")).SerializeToString(),
        relay_pb2.ControlMessage(
            id=1, reserved=relay_pb2.Reserved(ttl={"seconds": 315_576_000_000})
        ).SerializeToString(),
    ],
    "offers without end": [
        relay_pb2.ControlMessage(welcome=relay_pb2.Welcome(node_name="liar", observed="1.2.3.4:5")).SerializeToString(),
        *[
            relay_pb2.ControlMessage(
                incoming=relay_pb2.Incoming(token=b"x" * 16, peer="p", timeout={"seconds": 5})
            ).SerializeToString()
        ]
        * 2000,
    ],
}


@pytest.mark.parametrize("what", ANSWERS)
async def test_a_relay_that_talks_nonsense_does_not_end_its_client(ground: Nodes, what: str) -> None:
    """Afterwards it behaves, and is used."""
    name = f"y{abs(hash(what)) % 10000}"
    place = ground.ground.place("liar")
    node = Node(ground.ground.place(name), ground.folder / name, relays=[place], psk=PSK, relay_mode="off")
    liar = Node(place, ground.folder / f"{name}-liar", relays=[place], psk=PSK)
    identity = Identity.load(config.load(liar.config_file))
    heard = 0

    listening = socket.create_server((place.address, 20007))
    listening.setblocking(False)
    loop = asyncio.get_running_loop()

    async def lie(sock: socket.socket) -> None:
        nonlocal heard
        with contextlib.suppress(OSError, EOFError, TimeoutError, TlsError):
            tls = await FramedTls.start(sock, identity, server=True)
            try:
                await tls.receive()
                heard += 1
                for answer in ANSWERS[what]:
                    await tls.send(answer)
                async with asyncio.timeout(1):
                    while True:
                        await tls.receive()
            finally:
                tls.abort()

    async def accept() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                sock, _ = await loop.sock_accept(listening)
                group.create_task(lie(sock))

    lying = asyncio.create_task(accept())
    node.start("discovery", "tunnel")
    try:
        await node.ready("discovery", "tunnel")
        await until(lambda: heard >= 3, "it is tried again and again")
        assert "Traceback" not in node.log("tunnel").read_text()
        lying.cancel()
        await asyncio.gather(lying, return_exceptions=True)
        listening.close()
        liar.start("discovery", "relay")
        await liar.ready("discovery", "relay")

        async def there() -> bool:
            return await reserved(node) == {"liar"}

        await until(there, "it behaves now, and there is a reservation")
    finally:
        lying.cancel()
        listening.close()
        await liar.stop(timeout=5)
        await node.stop(timeout=5)
