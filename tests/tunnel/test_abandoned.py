"""Circuits that are given up before both legs are there: the relay and the other end know it at once, and keep nothing.

The time to pair is an hour where it can be set, so nothing here ends by itself.
"""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from services.relay.relay import Relay
from services.runtime.identity import Identity
from services.tunnel import dialling
from services.tunnel.errors import LinkFailed
from tests.relay.harness import Client, leg, limits
from tests.tunnel.conftest import Nodes
from tests.tunnel.inside import RELAY_PORT, Inner, Inside, inside
from tests.tunnel.local import PATIENCE, until


class Scene:
    """The tunnel of a, its relay, and b, which is the test itself."""

    def __init__(self, relay: Relay, ip: str, a: Inner, b: Client) -> None:
        self.relay, self.ip, self.a, self.b = relay, ip, a, b

    def call(self) -> asyncio.Task[object]:
        """a asks for a circuit to b."""
        return asyncio.create_task(self.a.tunnel.relays.circuit("r1", "b"))

    async def turned_away(self, token: bytes) -> None:
        """A leg that comes after all has nobody to wait for."""
        reader, writer = await leg(self.ip, token)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
        writer.transport.abort()

    async def forgotten(self) -> None:
        """The relay has nothing left of it, and blames nobody's time."""
        circuits = self.relay._broker.circuits
        await until(lambda: not len(circuits) and not len(self.relay._waiting), "the relay forgets the circuit")
        refused = self.relay.status().refused
        assert refused["given-up"] == 1 and "not-paired" not in refused
        assert self.a.reserved() == {"r1"}, "the control connection is none the worse"


@pytest.fixture
async def scene(short_path: Path) -> AsyncIterator[Scene]:
    async with inside(short_path) as here:
        yield await prepared(here)


async def prepared(here: Inside) -> Scene:
    ip = here.ground.address()
    relay = await here.relay("r1", limits(pairing_timeout=3600.0), address=ip)
    a = await here.tunnel("a")
    b = await Client.greet(ip, Identity.load(here.config("b", here.ground.address())))
    await b.reserve()
    here._stack.callback(b.close)
    await until(lambda: a.reserved() == {"r1"}, "a has a reservation")
    return Scene(relay, ip, a, b)


async def given_up(call: asyncio.Task[object]) -> None:
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call


async def test_before_the_relay_has_answered(scene: Scene) -> None:
    client = scene.a.tunnel.relays.clients["r1"]
    await until(lambda: not client._answers, "its heartbeat is answered")
    call = scene.call()
    while not client._answers:  # noqa: ASYNC110 — the very next turn counts
        await asyncio.sleep(0)
    assert not len(scene.relay._broker.circuits), "the relay has not got as far"
    await given_up(call)
    incoming = (await scene.b.hear()).incoming
    await scene.forgotten()
    await scene.turned_away(incoming.token)


@pytest.mark.parametrize("how", ["cancelled", "out of reach"])
async def test_while_the_leg_is_dialled(scene: Scene, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dialled = asyncio.Event()

    async def connect(*_: object, **__: object) -> None:
        dialled.set()
        if how == "out of reach":
            raise LinkFailed("nobody gets there")
        await asyncio.Event().wait()

    monkeypatch.setattr(dialling, "connect", connect)
    call = scene.call()
    await dialled.wait()
    if how == "cancelled":
        await given_up(call)
    else:
        with pytest.raises(LinkFailed):
            await call
    incoming = (await scene.b.hear()).incoming
    await scene.forgotten()
    await scene.turned_away(incoming.token)


async def test_while_the_other_leg_is_awaited(scene: Scene) -> None:
    call = scene.call()
    incoming = (await scene.b.hear()).incoming
    await until(lambda: len(scene.relay._waiting), "the leg is there")
    await given_up(call)
    await scene.forgotten()
    await scene.turned_away(incoming.token)


async def test_a_callee_that_cannot_come_does_not_keep_its_caller(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(*_: object, **__: object) -> None:
        raise LinkFailed("nobody gets there")

    token = (await scene.b.ask(connect={"peer": "a"})).circuit.token
    monkeypatch.setattr(dialling, "connect", connect)
    await scene.turned_away(token)
    await scene.forgotten()


def connections(source: str, to: str) -> int:
    """Established TCP connections from one IPv4 address to the relay port of another, as its host sees them."""

    def written(address: str) -> str:
        return socket.inet_aton(address)[::-1].hex().upper()

    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        local == f"{written(to)}:{RELAY_PORT:04X}" and remote.startswith(written(source)) and state == "01"
        for _, local, remote, state, *_ in rows
    )


@pytest.mark.slow
async def test_a_tunnel_that_is_killed_while_it_waits(ground: Nodes) -> None:
    """Real processes: b stands still, so a waits for its leg, and is killed meanwhile."""
    r, a, b = ground.r, *(ground.make(name, listens=False) for name in ("caller", "statue"))

    async def reserved() -> bool:
        return all(it.relays and it.relays[0].state == "reserved" for it in (await a.tunnel(), await b.tunnel()))

    try:
        await ground.start(r, a, b)
        await until(reserved, "both can be reached")
        b.signal(signal.SIGSTOP, "tunnel")
        asking = asyncio.create_task(a.ping(b.name, timeout=PATIENCE))
        await until(lambda: connections(a.place.address, r.place.address) > 1, "a's leg waits at the relay")
        assert "gave it up" not in r.log("relay").read_text()
        await a.kill("tunnel")
        with pytest.raises(grpc.aio.AioRpcError):
            await asking
        await until(lambda: "the caller gave it up" in r.log("relay").read_text(), "the relay has noticed")
        b.signal(signal.SIGCONT, "tunnel")
        await until(lambda: "circuit failed" in b.log("tunnel").read_text(), "b comes too late, and knows")
        a.start("tunnel")
        await until(lambda: a.ping(b.name), "a reaches b")
    finally:
        for node in (a, b, r):
            await node.stop(timeout=5)
