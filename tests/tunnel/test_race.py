"""Several ways to a peer tried beside each other."""

import asyncio
import socket
from pathlib import Path

import pytest

from services.tunnel import dialling
from services.tunnel.candidates import Candidate
from services.tunnel.core.link import DIRECT
from services.tunnel.peers import PeerAddress, PeerInfo
from tests.tunnel.inside import Gate, inside
from tests.tunnel.local import PATIENCE, until


async def test_one_that_hangs_does_not_hold_up_one_that_is_back(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no path at all, what failed is tried again although another attempt of the same round goes on for ever."""
    connect, silent = dialling.connect, 9

    async def patiently(ip: str, port: int, *, source: tuple[str, int], timeout: float) -> socket.socket:
        if port == silent:
            await asyncio.Event().wait()
        return await connect(ip, port, source=source, timeout=timeout)

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
