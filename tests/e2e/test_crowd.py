"""A crowd loses its fullest relay, and gets it back."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.conftest import FAILED, require_simulation
from tests.e2e.crowd import NODES, PACE, SHARE, Crowd

STALL = 5.0  # seconds; a quarter of one where the machine has time
PER_SECOND = 2 * NODES  # each may move a session every half second


@pytest.fixture
async def crowd(request: pytest.FixtureRequest) -> AsyncIterator[Crowd]:
    require_simulation()
    folder = Path(tempfile.mkdtemp(prefix="cw-"))
    try:
        one = Crowd(folder)
        try:
            yield one
            if request.node.stash.get(FAILED, False):
                for node in one.nodes:
                    print(f"--- {node.name}\n{node.tail('tunnel')}")
        finally:
            await one.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.serial
async def test_the_fullest_relay_dies_and_returns(crowd: Crowd) -> None:
    """FAILURES 1, 10: its sessions divide over the others, and nobody hurries back. Serial: 27 processes that others
    keep from answering in time take each other's relays for dead."""
    await crowd.start()
    async with crowd.streams(PACE):
        relay, killed = await crowd.kill_fullest()
        print(f"{relay.name} killed: {killed}")
        assert relay.name not in killed.places and killed.places.total() == len(crowd.pairs)
        assert max(killed.stalls) < STALL
        assert killed.reasons["failover"] > 0
        # What fails over without reason, on a machine that is too busy, is not spread.
        spurious = killed.reasons.total() - killed.reasons["failover"]
        assert killed.share <= SHARE or spurious > len(crowd.pairs) / 6
        await asyncio.sleep(0)
        returned = await crowd.revive(relay)
        print(f"{relay.name} returns: {returned}")
        assert max(returned.stalls) < STALL
        assert max(returned.seconds) <= PER_SECOND
