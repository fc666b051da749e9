"""When a keeper looks for paths."""

import asyncio
from pathlib import Path

import pytest

from services.tunnel.core.gaps import ANY, BETTER, DOUBT_PATIENCE, STANDBY
from tests.tunnel.inside import Inner, Inside, inside
from tests.tunnel.local import until

WATCHED = 1.0
"""Seconds; less than the responder leaves a missing standby to the initiator."""


async def session(here: Inside) -> tuple[Inner, Inner]:
    """Two nodes that have one, which the first began, with links over r1 and r2."""
    a, b = await here.tunnel("a"), await here.tunnel("b")
    await until(lambda: a.reserved() == b.reserved() == {"r1", "r2"}, "both are at both")
    await a.tunnel.ping("b", 1, 30)
    for node, peer in ((a, "b"), (b, "a")):
        links = node.tunnel.sessions.preferred[peer].session.links
        await until(lambda links=links: [link.usable for link in links] == [True, True], "there is a standby")
    return a, b


@pytest.mark.slow
async def test_what_is_the_other_sides_to_do_is_awaited_and_not_asked_for_over_and_over(short_path: Path) -> None:
    """A session has lost its standby, and the initiator is at it: the responder's keeper must not go round meanwhile.
    It once did so as fast as discovery answered, in every session of a relay that drained."""
    async with inside(short_path) as here:
        relays = [await here.relay(name) for name in ("r1", "r2")]
        _, b = await session(here)
        pairing = b.tunnel.sessions.preferred["a"]
        assert not pairing.keys.initiator
        rounds = 0

        def counted(_: object) -> None:
            nonlocal rounds
            rounds += 1

        b.tunnel.sessions.punch = counted  # asked in each round for a better path
        await relays[0].close()
        await until(lambda: len(pairing.session.links) == 1, "the standby is lost")
        rounds = 0
        await asyncio.sleep(WATCHED)
        assert rounds <= 10


async def test_doubt_is_given_time_before_anybody_is_dialled(short_path: Path) -> None:
    """A host that is too busy to answer in time is not made busier; a path that is lost is replaced at once."""
    async with inside(short_path) as here:
        for name in ("r1", "r2"):
            await here.relay(name)
        a, _ = await session(here)
        keeper, links = a.tunnel.sessions.keeper_of("b"), a.tunnel.sessions.preferred["b"].session.links
        assert keeper is not None and keeper._due_gaps() == {BETTER}
        one, other = links
        one.distrusted = True
        assert keeper._gaps() == {BETTER, STANDBY} and keeper._due_gaps() == {BETTER}
        assert 0 < keeper._patience() <= DOUBT_PATIENCE
        keeper._gap_since[STANDBY] -= DOUBT_PATIENCE
        assert keeper._due_gaps() == {BETTER, STANDBY}, "time is over"
        other.distrusted = True
        assert keeper._gaps() == {ANY} and not keeper._due_gaps(), "two at once: hardly both dead"
        keeper._gap_since[ANY] -= DOUBT_PATIENCE
        assert keeper._due_gaps() == {ANY}
        one.closing, one.distrusted = True, False
        keeper._gap_since.clear()
        assert keeper._due_gaps() == {ANY}, "the only one: nobody waits"
        one.closing = other.distrusted = False
