"""The door of the public port when the system has nothing left to accept with."""

import asyncio
import contextlib
import socket

import pytest

from services.tunnel.door import PAUSE, Door
from tests.descriptors import none_left
from tests.patience import PATIENCE


async def test_a_lack_of_descriptors_is_told_once_and_passes(caplog: pytest.LogCaptureFixture) -> None:
    welcomed: asyncio.Queue[socket.socket] = asyncio.Queue()

    async def welcome(sock: socket.socket, relay: str) -> None:
        welcomed.put_nowait(sock)

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    accepting = asyncio.create_task(Door(welcome).accept(listener))
    client = socket.socket()
    client.setblocking(False)
    try:
        with none_left():
            await asyncio.get_running_loop().sock_connect(client, listener.getsockname())
            await asyncio.sleep(5 * PAUSE)
        (await asyncio.wait_for(welcomed.get(), PATIENCE)).close()
        assert [record.getMessage() for record in caplog.records] == ["cannot accept"]
    finally:
        client.close()
        accepting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await accepting
        listener.close()
