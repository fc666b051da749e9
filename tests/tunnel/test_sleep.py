"""Sleep and wake without a link event (FAILURES 15): a backoff from before the sleep must not block recovery."""

import asyncio
import sys

import grpc
import pytest

from lab.child import Child
from lab.node import Node
from tests.tunnel.conftest import Nodes
from tests.tunnel.local import PATIENCE, until

BACKOFF = 3600.0  # seconds: as long as a night, where the test has no patience for it


async def rests(node: Node) -> bool:
    """Both ways to b have been tried, and neither is tried again while this test lasts."""
    candidates = (await node.explain("b")).candidates
    return len(candidates) == 2 and all(it.retry_in.ToSeconds() > BACKOFF / 4 for it in candidates)


@pytest.mark.slow
async def test_a_backoff_from_before_the_sleep_does_not_block_recovery(ground: Nodes) -> None:
    slept = ground.folder / "slept"
    slept.write_text("0")
    a, b, r = ground.a, ground.b, ground.r
    await ground.start(r, b)
    a.start("discovery")
    await a.ready("discovery")
    argv = ["tests.tunnel.shifted", str(slept), str(BACKOFF), "services.tunnel", "--config", str(a.config_file)]
    tunnel = Child([sys.executable, "-m", *argv], output=a.log("tunnel"))
    try:
        # A reservation that is made later makes the relay worth another try, whatever its backoff.
        await until(lambda: "relay reserved" in a.log("tunnel").read_text(), "a holds its place at r")
        await until(lambda: a.ping("b"), "a reaches b")
        await b.kill("tunnel")
        await until(lambda: rests(a), "a has tried in vain")
        await asyncio.sleep(1.0)
        b.start("tunnel")
        await b.ready("tunnel")
        with pytest.raises(grpc.aio.AioRpcError, match="no path to b"):
            await a.ping("b", timeout=2.0)  # the backoff blocks, as it should
        slept.write_text("600")
        await a.ping("b", timeout=PATIENCE)
        assert "revalidating all paths reason=clock" in a.log("tunnel").read_text()
    finally:
        await tunnel.stop()
        for node in (a, b, r):
            await node.stop(timeout=5)
