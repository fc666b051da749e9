"""The configuration is edited under live streams: what it names is used, and no stream is touched."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from lab.mesh import Mesh
from lab.node import Node
from tests.e2e.traffic import PORT, TARGET_PORT, Traffic, echo_server, eventually

pytestmark = pytest.mark.slow


def name_relays(node: Node, *relays: Node) -> None:
    """Edits the node's file."""
    config = yaml.safe_load(node.config_file.read_text())
    config["modules"]["edgeTunnel"]["relayNodes"] = [
        {"nodeName": relay.name, "advertiseAddress": [relay.place.address]} for relay in relays
    ]
    node.configure(config)


def be_relay(node: Node, mode: str, **limits: int) -> None:
    """Edits the node's file."""
    config = yaml.safe_load(node.config_file.read_text())
    config["modules"]["edgeRelay"].update(mode=mode, limits=limits)
    node.configure(config)


@pytest.fixture
async def unstarted(short_path: Path) -> AsyncIterator[Mesh]:
    mesh = Mesh.loopback(short_path)
    try:
        mesh.publish("echo", PORT, TARGET_PORT)
        async with echo_server(mesh.b.place):
            yield mesh
    finally:
        await mesh.stop()


async def start(mesh: Mesh) -> None:
    for node in mesh.nodes.values():
        node.start(*(("discovery", "relay") if node in (mesh.r1, mesh.r2) else ("discovery", "tunnel", "proxy")))
    for node in mesh.nodes.values():
        await node.ready(*node.started)


async def holding(mesh: Mesh, *relays: str) -> None:
    """Waits until a and b hold reservations at exactly these."""

    async def held() -> bool:
        states = [
            {it.relay for it in (await node.tunnel()).relays if it.state == "reserved"} for node in (mesh.a, mesh.b)
        ]
        return states == [set(relays), set(relays)]

    await eventually(held, f"a and b hold {relays}")


@contextlib.asynccontextmanager
async def warm_streams(mesh: Mesh) -> AsyncIterator[Traffic]:
    """Starts the mesh; streams flow over one relay, with a standby over the other."""
    await start(mesh)
    await holding(mesh, "r1", "r2")
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        await eventually(mesh.warm, "an active link and a standby over the other relay")
        yield traffic


async def test_a_relay_is_added_and_one_is_removed_while_streams_flow(unstarted: Mesh) -> None:
    mesh = unstarted
    # r2 serves from the start, and nobody knows of it.
    for node in (mesh.a, mesh.b, mesh.r1):
        name_relays(node, mesh.r1)
    name_relays(mesh.r2, mesh.r2)
    await start(mesh)
    await holding(mesh, "r1")
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        for node in (mesh.a, mesh.b):
            name_relays(node, mesh.r1, mesh.r2)
        await holding(mesh, "r1", "r2")
        await eventually(mesh.warm, "an active link and a standby over the other relay")
        await mesh.r1.kill("relay")
        await traffic.flows()
        for node in (mesh.a, mesh.b):
            name_relays(node, mesh.r2)
        await traffic.flows()


async def test_the_list_of_relays_is_emptied_and_filled_while_streams_flow(unstarted: Mesh) -> None:
    """FAILURES 14: the list of relays is emptied by a reload. Those that serve are kept; one may die even then."""
    mesh = unstarted
    async with warm_streams(mesh) as traffic:
        for node in (mesh.a, mesh.b):
            name_relays(node)
        for node in (mesh.a, mesh.b):
            await eventually(lambda node=node: applied(node), f"{node.name} has read that there are none")
        await traffic.flows()
        async with Traffic.through(mesh) as other:
            await other.flows()
        await mesh.r1.kill("relay")
        await traffic.flows()
        for node in (mesh.a, mesh.b):
            name_relays(node, mesh.r1, mesh.r2)
        mesh.r1.start("relay")
        await holding(mesh, "r1", "r2")
        await traffic.flows()


def applied(node: Node) -> bool:
    """Whether a node has followed a change of its relays."""
    log = node.log("discovery").read_text().splitlines()
    return any("configuration applied" in line and "relayNodes" in line for line in log)


async def test_a_live_relay_is_removed_from_every_file_while_streams_flow(unstarted: Mesh) -> None:
    """Its own, too: it drains, or goes on by its own merit; whoever is carried by it notices neither."""
    mesh = unstarted
    async with warm_streams(mesh) as traffic:
        active = await relay_in_use(mesh)
        other = mesh.r2 if active is mesh.r1 else mesh.r1
        for node in mesh.nodes.values():
            name_relays(node, other)

        async def unnamed() -> bool:
            return "is named in relayNodes" not in (await active.relay()).reason.replace("not named", "")

        await eventually(unnamed, f"{active.name} is no configured relay any more")
        for _ in range(5):
            await traffic.flows()
        assert not (await active.relay()).warnings


async def relay_in_use(mesh: Mesh) -> Node:
    """The relay over which a and b talk."""
    (relay,) = [it.relay for it in await mesh.a.links(mesh.b.name) if it.state == "active"]
    return mesh.nodes[relay]


async def test_a_node_becomes_a_relay_and_ceases_to_be_one_while_streams_flow(unstarted: Mesh) -> None:
    mesh = unstarted
    be_relay(mesh.r2, "off")
    await start(mesh)
    await holding(mesh, "r1")
    async with Traffic.through(mesh) as traffic:
        await traffic.flows()
        be_relay(mesh.r2, "auto")
        await holding(mesh, "r1", "r2")
        await eventually(mesh.warm, "an active link and a standby over the other relay")
        be_relay(mesh.r1, "off")
        await holding(mesh, "r2")
        await traffic.flows()
        be_relay(mesh.r1, "auto", maxReservations=7)
        await holding(mesh, "r1", "r2")
        be_relay(mesh.r1, "auto", maxReservations=8)

        async def limited() -> bool:
            return (await mesh.r1.relay()).limits.max_reservations == 8

        await eventually(limited, "the new limit is in force")
        await traffic.flows()
