"""FAILURES 30: half-open TCP. The machine of a client, or of a backend, vanishes without a word."""

import asyncio
import logging
import socket

import pytest

from lab.network import Network
from lab.wire import Shape
from services.proxy.core.catalog import Spot
from services.proxy.counters import Local
from services.proxy.dialer import Dialer
from services.proxy.pump import Meter, StreamPump
from services.proxy.tcp import TcpListener
from services.runtime import keepalive
from tests.e2e.conftest import require_simulation
from tests.tunnel.local import tcp_pair

PORT = 7000
PATIENCE = 60.0  # seconds for what the kernel notices within three


class Nowhere:
    """The route of a listener whose clients go no further."""

    label = "test"


class Doorstep:
    """Where a listener sends its clients."""

    crowded = False

    def __init__(self) -> None:
        self.clients: asyncio.Queue[socket.socket] = asyncio.Queue()

    def send(self, client: socket.socket, address: object, route: object) -> None:
        client.setblocking(False)
        self.clients.put_nowait(client)


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.parametrize("vanishes", ["client", "backend"])
async def test_who_vanished_is_noticed(vanishes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As fast as the kernel asks, here two seconds; without being asked the connection would stay for good."""
    require_simulation()
    monkeypatch.setattr(keepalive, "IDLE", 1)
    monkeypatch.setattr(keepalive, "INTERVAL", 1)
    monkeypatch.setattr(keepalive, "COUNT", 1)
    loop = asyncio.get_running_loop()
    with Network() as network:
        node, other = network.public("node"), network.public("other", shape=Shape(delay=0.001))
        assert other.wire is not None
        door = Doorstep()
        if vanishes == "client":
            listener = node.namespace.call(
                TcpListener, Spot("tcp", node.address, PORT), Nowhere(), door, logging.getLogger("test")
            )
            far = other.namespace.socket()
            far.setblocking(False)
            await loop.sock_connect(far, (node.address, PORT))
            near = await asyncio.wait_for(door.clients.get(), PATIENCE)
        else:
            far_server = other.namespace.call(socket.create_server, (other.address, PORT))
            far_server.setblocking(False)
            dialled: asyncio.Queue[socket.socket | None] = asyncio.Queue()
            dialer = Dialer()
            node.namespace.call(dialer.dial, "tcp", other.address, PORT, lambda sock, *_: dialled.put_nowait(sock))
            far, _ = await asyncio.wait_for(loop.sock_accept(far_server), PATIENCE)
            dialled_sock = await asyncio.wait_for(dialled.get(), PATIENCE)
            assert dialled_sock is not None
            near = dialled_sock
            far_server.close()
        ours, kept = node.namespace.call(tcp_pair)
        kept.setblocking(False)
        ended = asyncio.Event()
        pair = (near, ours) if vanishes == "client" else (ours, near)
        pump = StreamPump(*pair, lambda _: ended.set(), Meter(Local(), 0.0))
        try:
            await loop.sock_sendall(far, b"there")
            assert await asyncio.wait_for(loop.sock_recv(kept, 100), PATIENCE) == b"there"
            await asyncio.sleep(3)
            assert not ended.is_set(), "one that is only silent stays"
            other.wire.cut()
            await asyncio.wait_for(ended.wait(), PATIENCE)
        finally:
            pump.abort()
            for sock in (far, kept):
                sock.close()
            if vanishes == "client":
                listener.close()
            else:
                dialer.close()


def test_every_connection_is_watched() -> None:
    """Of clients by inheritance from the listener."""
    with socket.socket() as listening:
        keepalive.watch(listening)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == keepalive.IDLE
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == keepalive.COUNT
