"""Issue: nodes behind NATs, and relays about equally near, of which the fullest dies, returns, and drains under live streams.

`python -m tests.e2e.crowd` is the same with more nodes, and prints what it saw.
"""

from collections.abc import Iterator

import pytest

from services.tunnel.core.choice import BETTER, LOAD, RETURN
from tests.e2e.conftest import require_simulation
from tests.e2e.crowd import Crowd, Watch, crowd
from tests.e2e.traffic import eventually

pytestmark = [pytest.mark.slow, pytest.mark.lab]

NODES, PARTNERS = 6, 3
"""Each calls each other: 15 sessions."""
PACE = 0.3
WATCHED = 4.0
"""Seconds; what has not come by then is waited for, and then judged."""
PATIENCE = 90.0
STALLED = 15.0
"""Seconds. A link that does not answer is given up after 10 s (core/link.DEAD_AFTER): a stream that stands still for
longer was not moved, but forgotten. How quick the moves are is measured by the program, on a machine that does nothing else."""


@pytest.fixture
def one() -> Iterator[Crowd]:
    require_simulation()
    with crowd(NODES, PARTNERS) as it:
        yield it


async def check_left(one: Crowd, relay: str, watch: Watch) -> None:
    """Every session has left a relay, and no stream has suffered.

    How evenly they spread is for twelve nodes on a machine that does nothing else (the program), and for the choice
    alone (tests/tunnel/test_choice.py): here a relay that is busy for a moment is one that all see as the worse.
    """
    print(relay, watch)
    await eventually(lambda: one.left(relay), f"everybody has left {relay}, and has a standby", PATIENCE)
    await eventually(lambda: one.answered(watch.start), "every stream is answered", PATIENCE)
    moves = (await one.moves()) - watch.before
    assert max(watch.seconds) <= len(one.pairs), "some moved more than once in a second"
    assert moves.total() <= 2 * len(one.pairs), "most moved more than once"
    assert max(talk.stall(watch.start) for talk in one.talks) < STALLED


async def test_f10_the_fullest_relay_dies_returns_and_drains(one: Crowd) -> None:
    """FAILURES 10, 12: nobody is lost, nobody follows the herd."""
    await one.start()
    async with one.streams(PACE):
        relay, watch = await one.kill_fullest(WATCHED)
        await check_left(one, relay.name, watch)
        displaced = (await one.moves() - watch.before).total()

        watch = await one.revive(relay, WATCHED)
        print(relay.name, "returns", watch)
        assert sum(watch.reasons[why] for why in (BETTER, LOAD, RETURN)) < displaced, "all come back at once"

        drained, watch = await one.drain_fullest(WATCHED)
        await check_left(one, drained.name, watch)
