"""UDP through the mesh keeps the borders of its datagrams."""

import asyncio
import socket

import pytest

from lab.mesh import Mesh
from tests.e2e.traffic import PORT, TARGET_PORT, eventually, make_socket

pytestmark = pytest.mark.slow


async def test_datagrams_keep_their_borders(mesh: Mesh) -> None:
    """FAILURES 31: datagrams through streams of bytes, each as it was sent."""
    loop = asyncio.get_running_loop()
    mesh.publish("echo-udp", PORT + 1, TARGET_PORT + 1, "UDP")
    server = make_socket(mesh.b.place, socket.SOCK_DGRAM)
    server.bind((mesh.b.place.address, TARGET_PORT + 1))

    async def echo() -> None:
        while True:
            data, peer = await loop.sock_recvfrom(server, 65536)
            await loop.sock_sendto(server, data, peer)

    task = asyncio.create_task(echo())
    client = make_socket(mesh.a.place, socket.SOCK_DGRAM)
    try:
        client.connect((mesh.cluster_ips[0], PORT + 1))

        async def answered() -> bool:
            await loop.sock_sendall(client, b"are you there")
            return await asyncio.wait_for(loop.sock_recv(client, 65536), 1) == b"are you there"

        await eventually(answered, "the UDP service answers")
        for size in (1, 512, 1400, 9000, 0, 3):
            message = bytes([size % 251]) * size

            async def came_back(message: bytes = message) -> bool:
                # Datagrams may get lost, and late answers to earlier tries may come; borders must hold.
                await loop.sock_sendall(client, message)
                while (answer := await asyncio.wait_for(loop.sock_recv(client, 65536), 1)) != message:
                    assert answer == b"are you there" or len(set(answer)) <= 1
                return True

            await eventually(came_back, f"a datagram of {size} bytes comes back whole")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()
        client.close()
        mesh.publish("echo", PORT, TARGET_PORT)
