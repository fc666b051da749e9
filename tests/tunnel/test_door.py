"""The door of the public port: a flood, and a system that has nothing left to accept with."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

import pytest

from services.tunnel.config import MAX_HALF_OPEN
from services.tunnel.door import PAUSE, Door
from tests.descriptors import none_left
from tests.patience import PATIENCE, until


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


async def test_a_flood_pushes_out_itself_alone(loopback_ip: Callable[[], str]) -> None:
    async def welcome(sock: socket.socket, relay: str) -> None:
        await asyncio.sleep(PATIENCE)

    door, ip, elsewhere, clients = Door(welcome), loopback_ip(), loopback_ip(), list[socket.socket]()
    door.open(ip, 20006)
    try:
        for number in range(MAX_HALF_OPEN + 20):
            source = elsewhere if number == 0 else ip
            clients.append(await asyncio.to_thread(socket.create_connection, (ip, 20006), PATIENCE, (source, 0)))
        await until(lambda: door.evicted == 20, "the last ones made room")
        assert door.half_open == MAX_HALF_OPEN
        clients[0].setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has closed it
            clients[0].recv(1)
        assert await asyncio.to_thread(clients[1].recv, 1) == b""
    finally:
        for client in clients:
            client.close()
        await door.close()
