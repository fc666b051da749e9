"""Each service of a node may be restarted or die by itself while streams flow."""

import asyncio

import pytest

from lab.mesh import Mesh
from tests.e2e.traffic import PATIENCE, Stream, Traffic, connect, eventually

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("node", ["a", "b"])
@pytest.mark.parametrize("service", ["proxy", "discovery"])
async def test_streams_do_not_notice_a_restart(mesh: Mesh, node: str, service: str) -> None:
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        await mesh.nodes[node].restart(service)
        await traffic.flows()
    # What was restarted does its work again.
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()


@pytest.mark.parametrize("node", ["a", "b"])
@pytest.mark.parametrize("service", ["proxy", "discovery"])
async def test_streams_do_not_notice_a_crash(mesh: Mesh, node: str, service: str) -> None:
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        await mesh.nodes[node].kill(service)
        await traffic.flows()
        mesh.nodes[node].start(service)
        await mesh.nodes[node].ready(service)
        await traffic.flows()
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()


async def test_streams_do_not_notice_that_the_relays_of_their_own_ends_end(mesh: Mesh) -> None:
    """The relay services of a and b: they carry nothing of their own nodes'."""
    for end in (mesh.a, mesh.b):
        end.start("relay")
    async with Traffic.through(mesh) as traffic:
        for end in (mesh.a, mesh.b):
            await end.ready("relay")
            await end.restart("relay")
        await traffic.flows()
        for end in (mesh.a, mesh.b):
            await end.kill("relay")
        await traffic.flows()


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("node", ["a", "b"])
async def test_streams_of_a_tunnel_that_ends_are_reset_and_the_next_connection_works(
    mesh: Mesh, node: str, end: str
) -> None:
    stream = Stream(*await connect(mesh.a.place, mesh.cluster_ips[0]))
    try:
        await asyncio.wait_for(stream.say(b"before"), PATIENCE)
        if end == "stop":
            await mesh.nodes[node].stop("tunnel")
        else:
            await mesh.nodes[node].kill("tunnel")
        mesh.nodes[node].start("tunnel")
        await mesh.nodes[node].ready("tunnel")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(stream.reader.readexactly(1), PATIENCE)
    finally:
        stream.writer.close()

    async def works() -> bool:
        reader, writer = await connect(mesh.a.place, mesh.cluster_ips[0])
        try:
            await asyncio.wait_for(Stream(reader, writer).say(b"after"), PATIENCE)
        finally:
            writer.close()
        return True

    await eventually(works, "a new connection works")
