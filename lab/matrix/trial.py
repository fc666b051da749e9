"""One run of one event: traffic, the event, and what the clients noticed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from lab.child import Child
from lab.matrix.client import PATIENCE
from lab.matrix.conditions import PORT, TARGET_PORT, Net, paths
from lab.matrix.events import Event
from lab.matrix.flow import IDLE, Finding
from lab.matrix.results import Run
from lab.mesh import Mesh
from lab.node import NodeError

CALM = 1.0  # seconds of traffic before the event, which tell what is normal
OBSERVED = 2.0  # seconds after it, at least: silence is noticed within 1.5 (see ARCHITECTURE.md, liveness)
RECOVERED = 0.5  # seconds of observation after all is as usual again
ANSWER = 2 * PATIENCE  # seconds for any answer of the client


class Client:
    """The client process at a."""

    def __init__(self, mesh: Mesh, net: Net, loads: Sequence[str]) -> None:
        argv = [mesh.cluster_ips[0], str(PORT), str(net.bulk_rate), *loads]
        self._child = Child(
            [sys.executable, "-m", "lab.matrix.client", *argv], output=None, namespace=mesh.a.place.namespace
        )

    async def ask(self, words: str = "") -> Any:
        """Its answer; without words, what it says at the start. Raises NodeError."""
        if words:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.write(words.encode() + b"\n")
                self._child.stdin.flush()
        line = await asyncio.wait_for(asyncio.to_thread(self._child.stdout.readline), ANSWER)
        if not line:
            raise NodeError("the client at a ended; see its standard error above")
        return json.loads(line)

    def kill(self) -> None:
        """Ends it."""
        self._child.kill()


@contextlib.asynccontextmanager
async def backend(mesh: Mesh) -> AsyncIterator[None]:
    """The echo service at b."""
    place = mesh.b.place
    argv = [sys.executable, "-m", "lab.matrix.backend", place.address, str(TARGET_PORT)]
    child = Child(argv, output=None, namespace=place.namespace)
    try:
        if await asyncio.to_thread(child.stdout.readline) != b"listening\n":
            raise NodeError("the echo service at b ended; see its standard error above")
        yield
    finally:
        child.kill()


async def trial(mesh: Mesh, net: Net, kind: type[Event], loads: Sequence[str], number: int) -> Run:
    """One run in a mesh that is whole. Raises NodeError when the traffic does not even begin."""
    event = kind(mesh, mesh.r1)
    await event.prepare()
    client = Client(mesh, net, loads)
    try:
        await client.ask()
        await asyncio.sleep(CALM)
        before = await paths(mesh)
        link = await mesh.a.active(mesh.b.name)
        event.relay = mesh.nodes[link.relay] if link and link.relay else mesh.r1
        started, since = time.time(), time.monotonic()
        await event.strike()
        took = time.monotonic() - since
        try:
            await client.ask("use")
            await _recovered(client, loads)
            after = await paths(mesh)
            found = [Finding(**it) for it in await client.ask(f"finish {since}")]
        finally:
            await event.restore()
    finally:
        client.kill()
    return Run(kind.name, net.name, number, round(started, 3), round(took, 3), before, after, found)


async def _recovered(client: Client, loads: Sequence[str]) -> None:
    """Observes until all is as usual again, or for as long as sessions are held."""
    deadline = time.monotonic() + PATIENCE
    if set(loads) != {IDLE}:  # one that is idle has its answer, and asks nothing more
        await asyncio.sleep(OBSERVED)
    while time.monotonic() < deadline:
        if (await client.ask("flows"))["flows"]:
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(RECOVERED)
