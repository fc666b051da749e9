"""A full link is not a dead one."""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lab.mesh import HOME_SHAPE, Mesh
from lab.wire import Shape
from tests.e2e.conftest import print_logs, require_simulation
from tests.e2e.traffic import PORT, TARGET_PORT, connect, eventually, make_socket

pytestmark = [pytest.mark.lab, pytest.mark.serial]

RATE = 100e6  # bits per second of the homes' links
QUEUE = 512_000  # bytes; 40 ms
SIZE = 96 << 20  # bytes; about 8 s
MOST_RESENT = 0.1  # share of what was carried


@pytest.fixture
async def narrow_mesh(short_path: Path) -> AsyncIterator[Mesh]:
    """a and b behind links of 100 Mbit/s, which TCP fills and overfills."""
    require_simulation()
    mesh = Mesh.simulated(short_path, home=Shape(delay=HOME_SHAPE.delay, rate=RATE, queue=QUEUE))
    mesh.publish("source", PORT, TARGET_PORT)
    async with mesh.running(lean=True):
        try:
            await mesh.a.ping("b", timeout=60)
            await eventually(mesh.warm, "a and b have a link over each relay")
            yield mesh
        finally:
            print_logs(mesh)


async def test_bulk_over_a_narrow_link_is_hardly_sent_twice(narrow_mesh: Mesh) -> None:
    """FAILURES 24: a full link, whose probes wait and get lost, is not taken for a dead one."""
    mesh = narrow_mesh
    content = hashlib.shake_128(b"narrow").digest(1 << 20)
    sock = make_socket(mesh.b.place)
    sock.bind((mesh.b.place.address, TARGET_PORT))

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(SIZE >> 20):
            writer.write(content)
            await writer.drain()
        writer.close()

    async def path() -> tuple[str, int]:
        """The relay in use at b, which sends, and how often it changed."""
        (session,) = (it for it in (await mesh.b.tunnel()).sessions if it.peer == "a")
        return next(it.relay for it in session.links if it.state == "active"), session.switches

    before = await path()
    async with await asyncio.start_server(serve, sock=sock):
        reader, writer = await connect(mesh.a.place, mesh.cluster_ips[0])
        received = 0
        while data := await reader.read(1 << 20):
            received += len(data)
        writer.close()
    assert received == SIZE
    assert await path() == before, "the path was not left"
    (session,) = (it for it in (await mesh.b.tunnel()).sessions if it.peer == "a")
    carried = sum(link.bytes_sent for link in session.links)
    print(f"{session.switches} switches, {session.records_resent} records resent", file=sys.stderr)
    assert session.bytes_sent >= SIZE
    assert carried < (1 + MOST_RESENT) * session.bytes_sent
