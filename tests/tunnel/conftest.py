"""Real nodes for the tests of the tunnel process: a and b listen and reach each other, r is their relay."""

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.node import Node, together
from lab.place import Loopback
from tests.tunnel.local import Attached, Backend, Exit, until

PSK = "a secret of the tests of the tunnel, long enough"


@dataclass
class Nodes:
    """Places and nodes of one test module."""

    folder: Path
    ground: Loopback

    def __post_init__(self) -> None:
        self.relay_place = self.ground.place("r")
        self.r = self.make("r", relay_mode="auto")
        self.a, self.b = self.make("a"), self.make("b")

    def make(self, name: str, *, listens: bool = True, **options: Any) -> Node:
        """One more node, not started."""
        place = self.relay_place if name == "r" else self.ground.place(name, listens=listens)
        settings = {"psk": PSK, "relay_mode": "off", **options}
        return Node(place, self.folder / name, relays=[self.relay_place], **settings)

    async def start(self, *nodes: Node) -> None:
        for node in nodes:
            node.start("discovery", "relay" if node is self.r else "tunnel")
        await together(node.ready("discovery", "relay" if node is self.r else "tunnel") for node in nodes)


@pytest.fixture(scope="module")
def ground() -> Iterator[Nodes]:
    """Nothing runs yet."""
    folder = Path(tempfile.mkdtemp(prefix="cw-"))
    yield Nodes(folder, Loopback(random.Random()))
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def running(ground: Nodes) -> Iterator[Nodes]:
    """a, b and r are up."""
    nodes = (ground.r, ground.a, ground.b)
    try:
        asyncio.run(ground.start(*nodes))
        yield ground
    finally:
        for node in nodes:
            asyncio.run(node.stop(timeout=5))


@pytest.fixture
async def nodes(running: Nodes, request: pytest.FixtureRequest) -> AsyncIterator[Nodes]:
    """a, b and r are up, and a has a session with b."""
    try:
        await until(lambda: running.a.ping("b"), "a reaches b")
        yield running
    except BaseException:
        for node in (running.a, running.b):
            print(f"--- {node.name}\n{node.tail('tunnel')}")
        raise


@pytest.fixture
async def exit_b(nodes: Nodes) -> AsyncIterator[Exit]:
    """b's proxy, which dials what it is asked for."""
    async with Exit(nodes.b) as proxy:
        yield proxy


@pytest.fixture
async def attached(nodes: Nodes) -> AsyncIterator[Attached]:
    """A client of a's attach socket."""
    one = Attached(nodes.a)
    yield one
    one.close()


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    one = Backend()
    yield one
    one.close()
