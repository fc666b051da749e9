"""The cluster's secret is replaced under live streams, step by step; who stays behind is refused and told why."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from lab.mesh import Mesh
from lab.node import Node
from tests.e2e.traffic import PORT, TARGET_PORT, Traffic, echo_server, eventually

pytestmark = pytest.mark.slow

OLD, NEW = "psk", "psk.new"
STEPS = [(OLD, NEW), (NEW, OLD), (NEW,)]
"""Files: the first is what a node shows itself with, all are accepted. Before, it is (OLD,)."""


@pytest.fixture
async def mesh(short_path: Path) -> AsyncIterator[Mesh]:
    mesh = Mesh.loopback(short_path)
    mesh.publish("echo", PORT, TARGET_PORT)
    async with echo_server(mesh.b.place), mesh.running(lean=True):
        await mesh.a.ping("b", timeout=60)
        await eventually(mesh.warm, "a and b have a link over each relay")
        yield mesh


def hold(node: Node, *files: str) -> None:
    """Edits the node's file."""
    config = yaml.safe_load(node.config_file.read_text())
    config["modules"]["edgeTunnel"]["psk"].update(path=files[0], acceptPaths=list(files[1:]))
    node.configure(config)


async def step(node: Node, *files: str) -> None:
    """Edits the node's file, and waits until all of its services have taken it."""
    before = {service: _taken(node, service) for service in node.started}
    hold(node, *files)

    async def taken() -> bool:
        return all(_taken(node, service) > before[service] for service in node.started)

    await eventually(taken, f"{node.name} takes {files}")


def _taken(node: Node, service: str) -> int:
    return node.log(service).read_text().count("modules.edgeTunnel.psk.")


async def test_the_secret_is_replaced_under_live_streams(mesh: Mesh) -> None:
    new = secrets.token_hex(32)
    for node in mesh.nodes.values():
        (node.folder / NEW).write_text(new)
    sessions = [(await node.tunnel()).sessions[0].id for node in (mesh.a, mesh.b)]
    async with Traffic.through(mesh) as traffic:
        for files in STEPS:
            await asyncio.gather(*(step(node, *files) for node in (mesh.a, mesh.r1)))
            # In the middle of a step those who have taken it and those who have not meet anew.
            await mesh.r1.restart("relay")
            await eventually(mesh.warm, f"both ends meet at r1 half-way to {files}")
            await asyncio.gather(*(step(node, *files) for node in (mesh.b, mesh.r2)))
            await traffic.flows()
        await mesh.r2.restart("relay")
        await eventually(mesh.warm, "both ends meet at r2 under the new secret")
        assert sessions == [(await node.tunnel()).sessions[0].id for node in (mesh.a, mesh.b)]
        for node in mesh.nodes.values():
            for service in node.started:
                assert "not applied" not in node.log(service).read_text()

        # A node that slept through it all.
        place = mesh.another_place("late")
        relays = [mesh.r1.place, mesh.r2.place]
        late = Node(place, mesh.folder / "late", psk=mesh.psk, relays=relays, relay_mode="off")
        late.start("discovery", "tunnel")
        try:
            await late.ready("discovery", "tunnel")

            async def it_says() -> bool:
                status = await late.tunnel()
                said = [*status.warnings, *(it.state for it in status.relays)]
                return any("wrong-psk" in it and "has not got the new one" in it for it in said)

            async def they_say() -> bool:
                logs = [node.log("relay").read_text() for node in (mesh.r1, mesh.r2)]
                return all("late still uses a PSK that was replaced" in log for log in logs)

            await eventually(it_says, "the late node says that it has not got the new secret")
            await eventually(they_say, "the relays say that the late node uses the old secret")
            # And as soon as it has got it, it belongs.
            (late.folder / NEW).write_text(new)
            await step(late, NEW)
            assert await late.ping("b", timeout=60) > 0
        finally:
            await late.stop()
        await traffic.flows()
