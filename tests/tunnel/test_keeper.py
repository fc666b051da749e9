"""When a keeper looks for paths."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from services.tunnel.core.gaps import ANY, BETTER, DOUBT_PATIENCE, STANDBY
from services.tunnel.errors import LIMIT, NO_PATH, UNKNOWN_NODE, Refused, UnknownPeer
from services.tunnel.keeper import STRANGER_AFTER
from services.tunnel.peers import PeerInfo
from tests.tunnel.inside import Inner, Inside, inside
from tests.tunnel.local import PATIENCE, until

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


def nobody_knows(node: Inner, name: str) -> list[float]:
    """Makes discovery say so; the times of its answers, which end when the name is known."""
    asked: list[float] = []
    resolve = node.view.resolve

    async def answer(peer: str, *, fresh: bool, traceparent: str = "") -> PeerInfo | None:
        info = await resolve(peer, fresh=fresh, traceparent=traceparent)
        if info is None and peer == name:
            asked.append(time.monotonic())
            raise UnknownPeer(peer)
        return info

    node.view.resolve = answer
    return asked


@pytest.mark.slow
async def test_who_waits_for_a_node_that_nobody_knows_is_refused(short_path: Path) -> None:
    """Not at once: it may have just started, and then it is reached."""
    async with inside(short_path) as here:
        await here.relay("r")
        a = await here.tunnel("a")
        asked = nobody_knows(a, "b")
        early = asyncio.create_task(a.tunnel.sessions.session_with("b", 10 * PATIENCE))
        await until(lambda: asked, "discovery was asked")
        await here.tunnel("b")
        pairing = await asyncio.wait_for(early, PATIENCE)
        assert pairing.peer == "b"

        asked = nobody_knows(a, "c")
        patient = asyncio.create_task(a.tunnel.sessions.session_with("c", 10 * PATIENCE, patient=True))
        with pytest.raises(Refused, match="nobody knows a node c") as caught:
            await asyncio.wait_for(a.tunnel.sessions.session_with("c", 10 * PATIENCE), PATIENCE)
        assert caught.value.reason.code == UNKNOWN_NODE
        assert asked[-1] - asked[0] >= STRANGER_AFTER, "asked again before it is given up"
        assert not patient.done(), "as `causeway ping`, which may have been started before the node"
        await here.tunnel("c")
        assert (await asyncio.wait_for(patient, PATIENCE)).peer == "c"


async def test_who_waits_for_a_node_while_nobody_can_be_asked_has_his_time(short_path: Path) -> None:
    """And is not told that nobody knows it: that nobody said."""
    async with inside(short_path) as here:
        a = await here.tunnel("a")
        with pytest.raises(Refused, match="no address and no relay of it is known") as caught:
            await a.tunnel.sessions.session_with("b", 0.5)
        assert caught.value.reason.code == NO_PATH


async def test_at_the_limit_of_sessions_the_answer_is_that_and_at_once(short_path: Path) -> None:
    """Others would be dialled for nothing, and the application would wait."""
    async with inside(short_path) as here:
        a, b, c = await here.tunnel("a"), await here.tunnel("b", listens=True), await here.tunnel("c", listens=True)
        a.tunnel.sessions.settings = replace(a.tunnel.sessions.settings, max_sessions=1)
        pairing = await a.tunnel.sessions.session_with("b", PATIENCE)
        with pytest.raises(Refused, match="this node has 1 sessions") as caught:
            await asyncio.wait_for(a.tunnel.sessions.session_with("c", 10 * PATIENCE), PATIENCE)
        assert caught.value.reason.code == LIMIT
        assert await a.tunnel.sessions.session_with("b", PATIENCE) is pairing
        # The other side may be at its limit, too.
        b.tunnel.sessions.settings = replace(b.tunnel.sessions.settings, max_sessions=1)
        with pytest.raises(Refused) as caught:
            await c.tunnel.sessions.session_with("b", 1.0)
        assert caught.value.reason.code == LIMIT
