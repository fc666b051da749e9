"""A service with several backends, real processes on another node, one of which is killed under load."""

import asyncio
import hashlib
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lab.manifest import service
from lab.mesh import Mesh
from tests.e2e.traffic import PATIENCE, connect, eventually

pytestmark = pytest.mark.slow

PORT, FIRST = 7100, 7101
BACKEND = """
import asyncio, hashlib, sys
async def serve(reader, writer):
    data = await reader.read(-1)  # until the client's half-close
    writer.write(f"{sys.argv[2]} {len(data)} {hashlib.sha256(data).hexdigest()}".encode())
    writer.close()
async def main():
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]))
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


class Backends:
    """Processes that answer with their port."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._running: dict[int, asyncio.subprocess.Process] = {}

    async def start(self, port: int) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", BACKEND, self._address, str(port), stdout=asyncio.subprocess.PIPE
        )
        self._running[port] = process
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"

    async def kill(self, port: int) -> None:
        process = self._running.pop(port)
        process.kill()
        await process.wait()

    async def stop(self) -> None:
        for port in list(self._running):
            await self.kill(port)


@pytest.fixture
async def mesh(short_path: Path) -> AsyncIterator[Mesh]:
    """On loopback: the backends are processes of this machine."""
    async with Mesh.loopback(short_path).running(lean=True) as mesh:
        yield mesh


@pytest.fixture
async def backends(mesh: Mesh) -> AsyncIterator[Backends]:
    documents = service(
        "several",
        cluster_ip=mesh.cluster_ips[0],
        port=PORT,
        node="b",
        address=mesh.b.place.address,
        target_port=FIRST,
    )
    endpoints = documents[1]
    ports = endpoints.pop("ports")
    slices = [
        endpoints
        | {"metadata": endpoints["metadata"] | {"name": f"several-{i}"}, "ports": [ports[0] | {"port": FIRST + i}]}
        for i in range(3)
    ]
    for node in (mesh.a, mesh.b):
        node.publish([documents[0], *slices])
    running = Backends(mesh.b.place.address)
    try:
        for port in range(FIRST, FIRST + 3):
            await running.start(port)
        yield running
    finally:
        await running.stop()


async def ask(mesh: Mesh, number: int, size: int = 100) -> int:
    """One request of that many bytes on a connection of its own; the port of the backend that got them all."""
    reader, writer = await connect(mesh.a.place, mesh.cluster_ips[0], PORT)
    try:
        sent = random.Random(number).randbytes(size)
        writer.write(sent)
        writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
        port, count, digest = answer.decode().split()
        assert (int(count), digest) == (size, hashlib.sha256(sent).hexdigest())
        return int(port)
    finally:
        writer.close()


async def crowd(mesh: Mesh, requests: int, size: int = 100) -> "Counter[int]":
    """That many requests, 20 at once; any that fails raises."""
    gate = asyncio.Semaphore(20)

    async def one(number: int) -> int:
        async with gate:
            return await ask(mesh, number, size)

    return Counter(await asyncio.gather(*(one(number) for number in range(requests))))


async def ejected(mesh: Mesh) -> int:
    return next(row.ejected for row in (await mesh.a.proxy()).listeners if row.service.startswith("default/several"))


async def test_a_backend_is_killed_and_no_request_fails(mesh: Mesh, backends: Backends) -> None:
    dead = FIRST + 1

    async def served() -> bool:
        return len({await ask(mesh, number) for number in range(3)}) == 3 and await settled(mesh)

    await eventually(served, "the service is there, and no backend is left out that was asked too early")
    before = await crowd(mesh, 300)
    assert max(before.values()) - min(before.values()) <= 1
    assert len(before) == 3

    await backends.kill(dead)
    # What the dead one refuses goes elsewhere, with the bytes sent already; of large requests just the first part was.
    after = await crowd(mesh, 60, 300_000) + await crowd(mesh, 300)
    assert sum(after.values()) == 360
    assert dead not in after
    assert await ejected(mesh) <= 1

    await backends.start(dead)

    async def back() -> bool:
        return (await ask(mesh, 1)) == dead

    await eventually(back, "the backend that returned is used again")
    await eventually(lambda: settled(mesh), "it is one of three")


async def settled(mesh: Mesh) -> bool:
    return await ejected(mesh) == 0


async def test_with_all_backends_dead_a_client_is_told_at_once(mesh: Mesh, backends: Backends) -> None:
    async def served() -> bool:
        return (await ask(mesh, 0)) > 0

    await eventually(served, "the service is there")
    await backends.stop()
    for number in range(5):
        with pytest.raises(
            OSError, match=r"reset|not connected|Broken pipe"
        ):  # as soon as it is reset; what it does then
            await ask(mesh, number)
