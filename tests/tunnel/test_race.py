"""Several ways to a peer tried beside each other."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.tunnel import dialling, joining, sessions
from services.tunnel.candidates import Candidate
from services.tunnel.core.link import DIRECT
from services.tunnel.peers import PeerAddress, PeerInfo
from services.tunnel.turns import HEADSTART, Turns
from tests.tunnel.inside import Gate, Inside, inside
from tests.tunnel.local import PATIENCE, until


async def test_one_that_hangs_does_not_hold_up_one_that_is_back(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no path at all, what failed is tried again although another attempt of the same round goes on for ever."""
    connect, silent = dialling.connect, 9

    async def patiently(ip: str, port: int, **how: object) -> socket.socket:
        if port == silent:
            await asyncio.Event().wait()
        return await connect(ip, port, **how)

    monkeypatch.setattr(dialling, "connect", patiently)
    async with inside(short_path) as here:
        a, b = await here.tunnel("a"), await here.tunnel("b", listens=True)
        with socket.socket() as reserve:
            reserve.bind((b.address, 0))  # refuses: nobody listens
            port = reserve.getsockname()[1]
            here.directory.publish(PeerInfo("b", (PeerAddress(b.address, silent), PeerAddress(b.address, port))))
            session = asyncio.create_task(a.tunnel.sessions.session_with("b", PATIENCE))

            def refused() -> int:
                keeper = a.tunnel.sessions.keeper_of("b")
                return keeper.backoff(Candidate(DIRECT, f"{b.address}:{port}")).failures if keeper else 0

            await until(refused, "refused once")
            reserve.close()
            async with Gate(b.address, (b.address, 20006), port):
                assert (await session).peer == "b"


@pytest.fixture
async def mute(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Inside, PeerInfo]]:
    """Nodes may meet at a relay, and what a record of b looks like that also names addresses at which something accepts
    connections and says nothing: a captive portal, a SYN proxy. Nobody gives up on it for as long as a test lasts."""
    for module in (joining, sessions):
        monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT", 10 * PATIENCE)
    async with inside(short_path) as here, contextlib.AsyncExitStack() as stack:
        await here.relay("r")
        silent = [stack.enter_context(socket.create_server((here.ground.address(), 0))) for _ in range(3)]
        yield (
            here,
            PeerInfo("b", tuple(PeerAddress(*it.getsockname()) for it in silent), reservations=("r",), revision=99),
        )


@pytest.mark.slow
async def test_an_address_that_accepts_and_stays_mute_does_not_hold_up_a_new_session(
    mute: tuple[Inside, PeerInfo],
) -> None:
    here, record = mute
    a, b = await here.tunnel("a"), await here.tunnel("b")
    await until(lambda: a.reserved() == b.reserved() == {"r"}, "both have the relay")
    here.directory.publish(record)
    pairing = await a.tunnel.sessions.session_with("b", PATIENCE)
    assert pairing.session.active.relay == "r"


async def test_an_address_that_accepts_and_stays_mute_does_not_hold_up_a_session_without_a_path(
    mute: tuple[Inside, PeerInfo],
) -> None:
    here, record = mute
    a, b = await here.tunnel("a"), await here.tunnel("b")
    await until(lambda: a.reserved() == b.reserved() == {"r"}, "both have the relay")
    pairing = await a.tunnel.sessions.session_with("b", PATIENCE)
    await until(lambda: pairing.session.active, "there is a path")
    await b.tunnel.sessions.keeper_of("a").close()  # as behind a NAT that lets it dial nobody
    here.directory.publish(record)
    pairing.lose(pairing.session.active.owner, "for the test")
    await until(lambda: pairing.session.active, "there is a path again")
    assert not pairing.ended


async def test_a_session_that_the_peer_has_forgotten_is_made_anew_by_the_way_that_answered(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restarted peer answers at one of its addresses; the others swallow SYNs for as long as the test lasts."""
    connect = dialling.connect

    async def patiently(ip: str, port: int, **how: object) -> socket.socket:
        if ip.startswith("192.0.2."):
            await asyncio.Event().wait()
        return await connect(ip, port, **how)

    monkeypatch.setattr(dialling, "connect", patiently)
    async with inside(short_path) as here:
        a, b = await here.tunnel("a"), await here.tunnel("b", listens=True)
        pairing = await a.tunnel.sessions.session_with("b", PATIENCE)
        known = here.directory.records["b"]
        gone = tuple(PeerAddress(f"192.0.2.{number}", 20006) for number in (1, 2))
        here.directory.publish(replace(known, addresses=gone + known.addresses, revision=99))
        b.tunnel.sessions.preferred["a"].end("forgotten", say=False)

        async def made_anew() -> bool:
            return await a.tunnel.sessions.session_with("b", PATIENCE) is not pairing

        await until(made_anew, "there is another session")
        assert pairing.ended


async def test_handshakes_take_turns_while_they_are_quick() -> None:
    turns, going, most = Turns(), 0, 0

    async def quick() -> None:
        nonlocal going, most
        async with turns:
            going += 1
            most = max(most, going)
            await asyncio.sleep(0)
            going -= 1

    await asyncio.gather(*(quick() for _ in range(20)))
    assert most == 1


@pytest.mark.slow
async def test_when_several_handshakes_hang_the_next_one_has_its_turn() -> None:
    turns, began = Turns(), time.monotonic()

    async def hang() -> None:
        async with turns:
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(hang()) for _ in range(5)]
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE), turns:
        took = time.monotonic() - began
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert took > HEADSTART, "each had some time for itself"
