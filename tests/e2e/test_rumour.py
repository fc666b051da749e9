"""A relay that two nodes are told of by their configuration is soon used by the others, which hear of it through the DHT."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.nat import Kind, Nat
from lab.network import Network
from lab.node import Node, together
from lab.place import simulated
from protos import tunnel_pb2 as pb
from tests.e2e import figures
from tests.e2e.conftest import require_simulation
from tests.e2e.test_reload import name_relays
from tests.e2e.traffic import eventually

pytestmark = [pytest.mark.slow, pytest.mark.lab]


@dataclass
class Scene:
    """r1 is in everybody's configuration, r2 in its own only; a, b, c and d are each behind a NAT that no hole punching
    gets through."""

    r1: Node
    r2: Node
    homes: dict[str, Node]

    @property
    def nodes(self) -> list[Node]:
        return [self.r1, self.r2, *self.homes.values()]


@pytest.fixture
async def scene(short_path: Path) -> AsyncIterator[Scene]:
    require_simulation()
    psk = secrets.token_hex(32)
    with Network() as net:
        one, two = (simulated(net.public(name)) for name in ("r1", "r2"))
        homes = [simulated(net.lan(f"home-{it}", Nat(Kind.SYMMETRIC)).host(it)) for it in ("a", "b", "c", "d")]
        made = Scene(
            Node(one, short_path / "r1", psk=psk, relays=[one]),
            Node(two, short_path / "r2", psk=psk, relays=[two]),
            {it.name: Node(it, short_path / it.name, psk=psk, relays=[one], relay_mode="off") for it in homes},
        )
        try:
            for node in made.nodes:
                node.start("discovery", "relay" if node in (made.r1, made.r2) else "tunnel")
            await together(node.ready(*node.started, timeout=120) for node in made.nodes)
            yield made
        finally:
            await asyncio.gather(*(node.stop(timeout=5) for node in made.nodes))


async def reserved(node: Node) -> set[str]:
    return {relay.relay for relay in (await node.tunnel()).relays if relay.state == "reserved"}


async def everywhere(nodes: list[Node], relays: set[str]) -> bool:
    return all([await reserved(node) == relays for node in nodes])


async def test_a_relay_named_to_two_nodes_is_used_by_the_others_when_the_first_dies(scene: Scene) -> None:
    a, b, c, d = scene.homes.values()
    await eventually(lambda: everywhere([a, b, c, d], {"r1"}), "all hold a reservation at r1")
    await c.ping("d", timeout=60)
    assert "r2" not in {peer.record.node_name for node in (a, b, c, d) for peer in (await node.discovery()).peers}
    for node in (a, b):
        name_relays(node, scene.r1, scene.r2)
    began = time.monotonic()
    await eventually(lambda: everywhere([c, d], {"r1", "r2"}), "c and d hold a reservation at r2, too")
    used = time.monotonic() - began
    figures.note("rumour", used)
    print(f"used by those who were not told after {used:.1f} s")
    for node in (c, d):
        (heard,) = [peer for peer in (await node.discovery()).peers if peer.record.node_name == "r2"]
        assert heard.verified and heard.relay_rank == 0 and heard.record.HasField("relay")
    # Nobody behind a NAT is taken for a server.
    assert not any([(await node.discovery()).dht.server for node in (a, b, c, d)])
    assert {it for node in scene.nodes for it in (await node.discovery()).dht.holders} <= {"r1", "r2"}

    await scene.r1.kill("discovery", "relay")

    async def over_r2() -> bool:
        with contextlib.suppress(Exception):
            await c.ping("d", timeout=5)
        active = await c.active("d")
        return active is not None and active.kind == pb.PATH_KIND_RELAYED and active.relay == "r2"

    await eventually(over_r2, "c reaches d over r2")
    # A node that knew only the dead relay finds others with what it remembers.
    await b.restart("discovery")
    await b.ping("d", timeout=60)
