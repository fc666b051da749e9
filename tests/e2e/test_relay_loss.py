"""Relays die in every way under live streams. No byte is lost, doubled or swapped, no stream is reset."""

import asyncio

import pytest

from lab.mesh import Mesh
from lab.node import Node
from tests.e2e.traffic import Traffic, eventually

OUTAGE = 10.0  # seconds without any relay, from the requirement


async def relay_in_use(mesh: Mesh) -> Node:
    """The node over which a and b talk."""
    link = await mesh.a.active("b")
    assert link is not None
    return mesh.nodes[link.relay]


@pytest.mark.slow
async def test_traffic_goes_through_a_relay(mesh: Mesh) -> None:
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        circuits = [it for node in (mesh.r1, mesh.r2) for it in (await node.relay()).circuits]
        assert {frozenset((it.caller, it.callee)) for it in circuits} == {frozenset("ab")}
        # 64 MiB have made the round trip; the stream may have changed its relay meanwhile.
        assert sum(it.bytes_from_caller + it.bytes_from_callee for it in circuits) > 128 << 20


async def test_relay_killed(mesh: Mesh) -> None:
    """FAILURES 1: the relay in use dies under live streams."""
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        victim = await relay_in_use(mesh)
        await victim.kill()
        await traffic.flows()
        assert await relay_in_use(mesh) is not victim


@pytest.mark.slow
async def test_relay_silent(mesh: Mesh) -> None:
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        victim = await relay_in_use(mesh)
        victim.silence()
        await traffic.flows()
        assert await relay_in_use(mesh) is not victim


@pytest.mark.slow
async def test_relays_silent_in_turns(mesh: Mesh) -> None:
    async with Traffic.through(mesh) as traffic:
        for _ in range(3):
            await traffic.flows()
            victim = await relay_in_use(mesh)
            victim.silence()
            await traffic.flows()
            assert await relay_in_use(mesh) is not victim
            victim.unsilence()
            await eventually(mesh.warm, "the relay that returned stands by")


@pytest.mark.slow
async def test_relay_stops_politely(mesh: Mesh) -> None:
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        victim = await relay_in_use(mesh)
        codes = await victim.stop("relay")
        assert codes == {"relay": 0}
        await traffic.flows()
        assert await relay_in_use(mesh) is not victim


@pytest.mark.slow
async def test_rolling_restart_of_all_relays(mesh: Mesh) -> None:
    """FAILURES 8, 12: each comes back with its address and identity, and stands by again."""
    async with Traffic.through(mesh) as traffic:
        for node in (mesh.r1, mesh.r2):
            await traffic.flows()
            await node.restart("relay")
            await traffic.flows()
            await eventually(mesh.warm, "the restarted relay stands by")


@pytest.mark.slow
async def test_both_relays_gone_for_a_while(mesh: Mesh) -> None:
    """FAILURES 14: every relay is gone."""
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        await mesh.r1.kill("relay")
        await mesh.r2.kill("relay")
        await asyncio.sleep(OUTAGE)
        mesh.r2.start("relay")
        await traffic.flows()
        assert await relay_in_use(mesh) is mesh.r2


@pytest.mark.slow
async def test_both_relays_silent_for_a_while(mesh: Mesh) -> None:
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        mesh.r1.silence()
        mesh.r2.silence()
        await asyncio.sleep(OUTAGE)
        mesh.r1.unsilence()
        await traffic.flows()
        assert await relay_in_use(mesh) is mesh.r1
