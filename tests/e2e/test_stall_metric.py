"""What a person sees in Prometheus after a relay was lost: that streams stood still, for how long, and why."""

import asyncio
import re
import urllib.request
from pathlib import Path

import pytest
import yaml

from lab.mesh import Mesh
from lab.node import Node
from tests.e2e.traffic import PORT, TARGET_PORT, Traffic, echo_server, eventually

pytestmark = pytest.mark.slow

BASE_PORT = 9100
COUNT = re.compile(r'^causeway_stream_stall_seconds_count\{cause="(\w+)"\} (\d+)', re.MULTILINE)


def serve_metrics(node: Node) -> None:
    config = yaml.safe_load(node.config_file.read_text())
    config["metrics"] = {"listenAddress": node.place.address, "basePort": BASE_PORT}
    node.configure(config)


def scrape(node: Node) -> str:
    with urllib.request.urlopen(f"http://{node.place.address}:{BASE_PORT + 1}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


async def test_the_stall_after_a_killed_relay_has_its_cause(short_path: Path) -> None:
    mesh = Mesh.loopback(short_path)
    mesh.publish("echo", PORT, TARGET_PORT)
    serve_metrics(mesh.a)
    serve_metrics(mesh.b)

    async def stalls() -> set[str]:
        texts = [await asyncio.to_thread(scrape, node) for node in (mesh.a, mesh.b)]
        return {cause for text in texts for cause, count in COUNT.findall(text) if float(count) > 0}

    async with echo_server(mesh.b.place), mesh.running(lean=True):
        await mesh.a.ping("b", timeout=60)
        await eventually(mesh.warm, "a and b have a link over each relay")
        async with Traffic.through(mesh) as traffic:
            await traffic.flows()
            assert "relay_lost" not in await stalls()
            link = await mesh.a.active("b")
            assert link is not None
            await mesh.nodes[link.relay].kill()
            await traffic.flows()

            async def told() -> bool:
                return "relay_lost" in await stalls()

            await eventually(told, "the stall is counted under its cause")
