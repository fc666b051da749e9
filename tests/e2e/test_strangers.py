"""Nodes with the wrong secret, or of another cluster, are refused, and both sides say why."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lab.mesh import Mesh
from lab.node import Node
from lab.place import Place
from tests.e2e.traffic import eventually

pytestmark = pytest.mark.slow


@pytest.fixture
async def place(mesh: Mesh) -> Place:
    """A place for one more node, from which both relays can be reached."""
    return mesh.another_place("stranger")


@pytest.fixture
async def stranger(mesh: Mesh, place: Place, short_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    """A node that differs in one thing from those that belong here."""
    options = {"psk": mesh.psk, "relays": [mesh.r1.place, mesh.r2.place], **request.param}
    if options["relays"] == "mixed up":
        swapped = mesh.r2.place.address, mesh.r1.place.address
        names = mesh.r1.name, mesh.r2.name
        options["relays"] = [Place(name, address) for name, address in zip(names, swapped, strict=True)]
    node = Node(place, short_path / "stranger", relay_mode="off", **options)
    node.start("discovery", "tunnel")
    try:
        await node.ready("discovery", "tunnel")
        yield node
    finally:
        await node.stop()


@pytest.mark.parametrize(
    ("stranger", "reason"),
    [
        ({"psk": "not the secret of this cluster at all"}, "wrong-psk"),
        ({"cluster": "elsewhere"}, "wrong-cluster"),
        ({"relays": "mixed up"}, "name-mismatch"),
    ],
    indirect=["stranger"],
)
async def test_both_sides_say_why(mesh: Mesh, stranger: Node, reason: str) -> None:
    """FAILURES 34: a wrong PSK is called that, by both sides."""

    async def stranger_says() -> bool:
        status = await stranger.tunnel()
        return any(reason in it.state for it in status.relays) or any(reason in it for it in status.warnings)

    async def relays_say() -> bool:
        return all(reason in node.log("relay").read_text() for node in (mesh.r1, mesh.r2))

    async def discoveries_say() -> bool:
        status = await stranger.discovery()
        return any(reason in it for it in [*status.warnings, *status.sources.values()])

    await eventually(stranger_says, f"the stranger's tunnel says {reason}")
    await eventually(relays_say, f"the relays say {reason}")
    await eventually(discoveries_say, f"the stranger's discovery says {reason}")
    assert not [it for it in (await mesh.a.discovery()).peers if it.record.node_name == "stranger"]
