"""The relay's public port when the system has nothing left to accept with."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from services.relay.core.greeting import PROOF_LENGTH, PROOF_MAGIC
from services.relay.listener import ACCEPT_PAUSE, PublicPort, open_listener
from tests import loopback
from tests.descriptors import none_left

from .harness import PATIENCE, limits


async def test_a_lack_of_descriptors_is_told_once_and_passes(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    proofs: asyncio.Queue[socket.socket] = asyncio.Queue()
    port = PublicPort(
        loop,
        open_listener(loopback.address(), 20007),
        limits(),
        on_control=lambda newcomer: newcomer.close(),
        on_leg=lambda key, token, sock: sock.close(),
        on_proof=lambda token, sock: proofs.put_nowait(sock),
        log=logging.getLogger("causeway.relay"),
    )
    client = socket.socket()
    client.setblocking(False)
    try:
        with none_left():
            await loop.sock_connect(client, port._listener.getsockname())
            await asyncio.sleep(5 * ACCEPT_PAUSE)
        await loop.sock_sendall(client, PROOF_MAGIC + bytes(PROOF_LENGTH - len(PROOF_MAGIC)))
        (await asyncio.wait_for(proofs.get(), PATIENCE)).close()
        assert [record.getMessage() for record in caplog.records] == ["cannot accept; raise the limit of open files"]
        assert port.refused["no-descriptor"] >= 2
    finally:
        client.close()
        port.close()
