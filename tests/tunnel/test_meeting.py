"""At which relay two tunnels meet, and that it is the same one for both. Everything in this process."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.tunnel import relay_client
from tests.tunnel.inside import Inner, Inside, inside
from tests.tunnel.local import until


@pytest.fixture
async def here(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Inside]:
    monkeypatch.setattr(relay_client, "HEARTBEAT", 0.1)
    async with inside(short_path) as one:
        yield one


def farther(node: Inner, relay: str, seconds: float) -> None:
    """All that this node measures to a relay, and over it, takes so much longer."""
    pool, measured = node.tunnel.relays, node.tunnel.relays.measured
    node.tunnel.meeting._measure = lambda *_: {}  # loopback has no distance: what both say of their relays decides
    pool.measured = lambda name, rtt, now: measured(name, rtt + seconds * (name == relay), now)


async def test_both_ends_move_to_the_relay_that_is_nearer_for_both(here: Inside) -> None:
    """Both have one relay first; then a nearer one comes, and after a while both are there."""
    await here.relay("far")
    a, b = await here.tunnel("a"), await here.tunnel("b")
    for node in (a, b):
        farther(node, "far", 0.1)
    await until(lambda: a.reserved() == b.reserved() == {"far"}, "both are at the far one")
    await a.tunnel.ping("b", 1, 30)
    assert a.relays_in_use("b") == ["far"]
    a.tunnel.meeting._pace._open_at = b.tunnel.meeting._pace._open_at = dict.fromkeys(("far", "near"), 0.0)
    await here.relay("near", rank=2)
    await until(lambda: a.relays_in_use("b") == b.relays_in_use("a") == ["near"], "both are at the near one")
    # Which way is quicker may move them first; then the choice is made, and told.
    ends = [a.tunnel.sessions.preferred["b"].session, b.tunnel.sessions.preferred["a"].session]
    await until(lambda: all(end.agreed == "near" for end in ends), "both know that it is agreed")
    way = next(it for it in (await a.tunnel.explain("b")).candidates if it.state == "active")
    assert "near" in way.why and "load" in way.why, "explain says why"
