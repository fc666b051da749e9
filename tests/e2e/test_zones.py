"""Zones from a file of manifests to the client: real discovery and proxy, and a server for each endpoint."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lab.manifest import Document, service
from lab.node import Node
from lab.place import Loopback
from tests.e2e.traffic import connect, eventually

pytestmark = pytest.mark.slow

PORT = 7000
ZONES = ("eu", "us", "ap")


class Zones:
    """One node in eu, and a server in each zone that says it. Their endpoints have no node: the client's dials them."""

    def __init__(self, folder: Path) -> None:
        self._loopback = Loopback(random.Random())
        self.place = self._loopback.place("a", listens=False)
        self.cluster_ip = self._loopback.address()
        self.servers: dict[str, asyncio.Server] = {}
        self._addresses: dict[str, str] = {}
        self.node = Node(self.place, folder, psk=secrets.token_hex(32), config={"zone": "eu"})

    async def serve(self) -> None:
        for zone in ZONES:
            self._addresses[zone] = self._loopback.address()

            def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter, zone: str = zone) -> None:
                writer.write(zone.encode())
                writer.close()

            self.servers[zone] = await asyncio.start_server(say, self._addresses[zone], PORT)

    def publish(self, distribution: str = "", hints: dict[str, Any] | None = None) -> None:
        head, slice_ = service("web", cluster_ip=self.cluster_ip, port=PORT, node="", address="", target_port=PORT)
        head["spec"] |= {"trafficDistribution": distribution} if distribution else {}
        slice_["endpoints"] = [self._endpoint(zone, (hints or {}).get(zone)) for zone in ZONES]
        self.node.publish([head, slice_])

    def _endpoint(self, zone: str, hints: Any) -> Document:
        return {"addresses": [self._addresses[zone]], "zone": zone, **({"hints": hints} if hints else {})}

    async def seen(self) -> set[str]:
        """Who answers."""
        found = set()
        for _ in range(9):
            reader, writer = await connect(self.place, self.cluster_ip, PORT)
            found.add((await reader.read()).decode())
            writer.close()
        return found

    async def gives(self, *expected: str) -> None:
        async def given() -> bool:
            return await self.seen() == {*expected}

        await eventually(given, f"clients go to {', '.join(expected)}")


@pytest.fixture
async def zones(short_path: Path) -> AsyncIterator[Zones]:
    zones = Zones(short_path)
    await zones.serve()
    zones.publish("PreferSameZone")
    try:
        zones.node.start("discovery", "proxy")
        await zones.node.ready("discovery", "proxy")
        yield zones
    finally:
        await zones.node.stop()
        for server in zones.servers.values():
            server.close()


async def test_a_zone_from_the_manifests_to_the_client(zones: Zones) -> None:
    await zones.gives("eu")
    status = await zones.node.proxy()
    (row,) = (one for one in status.listeners if one.service.startswith("default/web"))
    assert (status.zone, row.endpoints, row.preferred) == ("eu", 3, 1)

    def hints(*names: str) -> dict[str, Any]:
        return {"forZones": [{"name": name} for name in names]}

    # As a cluster's controller has shared them out (`topology-mode: Auto`); then one without a hint, and none counts.
    zones.publish("", {"eu": hints("us"), "us": hints("eu"), "ap": hints("ap", "eu")})
    await zones.gives("us", "ap")
    zones.publish("", {"eu": hints("us"), "us": hints("eu")})
    await zones.gives(*ZONES)
    for_us = {"forNodes": [{"name": "a"}]}
    zones.publish("", {"eu": {"forNodes": [{"name": "b"}]}, "us": for_us, "ap": for_us | hints("ap")})
    await zones.gives("us", "ap")
    for zone in ("us", "ap"):
        zones.servers.pop(zone).close()
    assert await zones.seen() == {"eu"}, "no client is refused while anybody is well"
