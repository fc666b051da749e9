"""A carrier's NAT that cuts every connection at a certain age, used or not (FAILURES 18)."""

import asyncio
import itertools
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from lab.mesh import Mesh
from lab.nat import Nat
from tests.e2e.conftest import print_logs, require_simulation
from tests.e2e.traffic import PATIENCE, PORT, TARGET_PORT, Stream, connect, echo_server, eventually

LIFETIME = float(os.environ.get("NAT_LIFETIME", "15"))  # seconds; 60 by hand
NOTICED = 12.0  # seconds after which a link that was cut counts as lost, and some more


@pytest.mark.slow
@pytest.mark.lab
async def test_connections_are_replaced_before_their_nat_cuts_them() -> None:
    """From the third cut on there is none."""
    require_simulation()
    folder = Path(tempfile.mkdtemp(prefix="cw-"))
    mesh = Mesh.simulated(folder, a_nat=Nat(lifetime=LIFETIME))
    try:
        mesh.publish("echo", PORT, TARGET_PORT)
        await mesh.start(lean=True)
        async with echo_server(mesh.b.place):
            await mesh.a.ping("b", timeout=60)
            stream = Stream(*await connect(mesh.a.place, mesh.cluster_ips[0]))
            ending = False

            async def talk() -> None:
                for number in itertools.count():
                    if ending:
                        return
                    await stream.say(b"%064d" % number)
                    await asyncio.sleep(0.02)

            async with asyncio.TaskGroup() as group:
                group.create_task(talk())
                try:
                    await _observe(mesh, stream)
                finally:
                    ending = True
            stream.writer.write_eof()
            assert await asyncio.wait_for(stream.reader.read(), PATIENCE) == b""
            stream.writer.close()
    except BaseException:
        print_logs(mesh)
        raise
    finally:
        await mesh.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def _observe(mesh: Mesh, stream: Stream) -> None:
    def said(node: str, text: str) -> int:
        return mesh.nodes[node].log("tunnel").read_text().count(text)

    async def rotated() -> bool:
        words = ("link rotated peer=b relay=r1", "link rotated peer=b relay=r2")
        return all(said("a", text) for text in (*words, "relay control rotated relay=r1", "control rotated relay=r2"))

    began = time.monotonic()
    await eventually(
        rotated, "the lifetime is known, and links and relays are rotated", timeout=5 * LIFETIME + PATIENCE
    )
    print(f"known and rotated after {time.monotonic() - began:.1f} s, longest stall {stream.stall:.3f} s")
    await asyncio.sleep(NOTICED)  # what was cut before is lost only when somebody misses it
    lost = [said(node, "link lost") for node in "ab"]
    failed, rotations, stream.stall = said("a", "relay control failed"), said("a", "rotated"), 0.0
    # Long enough for whatever is alive now to be rotated, or else to be cut and missed.
    await asyncio.sleep(LIFETIME + NOTICED)
    print(f"then, for {LIFETIME + NOTICED:.0f} s, longest stall {stream.stall:.3f} s")
    assert [said(node, "link lost") for node in "ab"] == lost, "no link was cut any more"
    assert said("a", "relay control failed") == failed
    assert said("a", "rotated") >= rotations + 4
    # A cut costs 0.35 s where nothing else is to be done; this machine may have.
    assert stream.stall < 5.0
    await eventually(mesh.warm, "there are an active link and a standby")
    assert any("rotated" in link.why for link in await mesh.a.links("b"))
    assert not said("b", "rotated"), "b's own NAT cuts nothing, and b does not think so"
