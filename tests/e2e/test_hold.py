"""A session without any path ends its streams once the hold is over, and says why."""

import asyncio
from pathlib import Path

import pytest
import yaml

from lab.mesh import Mesh
from tests.e2e.traffic import PATIENCE, PORT, TARGET_PORT, Stream, connect, echo_server, eventually

HOLD = 3  # seconds instead of 60


@pytest.mark.slow
async def test_streams_end_with_a_reason_after_the_hold(short_path: Path) -> None:
    mesh = Mesh.loopback(short_path)
    mesh.publish("echo", PORT, TARGET_PORT)
    async with mesh.running(lean=True):
        async with echo_server(mesh.b.place):
            served = await eventually(lambda: connect(mesh.a.place, mesh.cluster_ips[0]), "the service is served")
            stream = Stream(*served)
            await asyncio.wait_for(stream.say(b"before"), PATIENCE)
            # Told while it runs; the stream does not notice.
            for node in (mesh.a, mesh.b):
                config = yaml.safe_load(node.config_file.read_text())
                config["modules"]["edgeTunnel"]["sessionHoldSeconds"] = HOLD
                node.configure(config)

            async def applied() -> bool:
                return all("sessionHoldSeconds" in node.log("tunnel").read_text() for node in (mesh.a, mesh.b))

            await eventually(applied, "the new hold is in force")
            for node in (mesh.a, mesh.b):
                assert not (await node.tunnel()).warnings
            await asyncio.wait_for(stream.say(b"still"), PATIENCE)
            await mesh.r1.kill("relay")
            await mesh.r2.kill("relay")
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(stream.reader.readexactly(1), PATIENCE)
            stream.writer.close()
        assert f"no path to b for {HOLD} s" in mesh.a.log("tunnel").read_text()
        assert not (await mesh.a.tunnel()).sessions
