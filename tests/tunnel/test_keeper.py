"""How often a keeper looks for paths."""

import asyncio
from pathlib import Path

from tests.tunnel.inside import inside
from tests.tunnel.local import until

WATCHED = 1.0
"""Seconds; less than the responder leaves a missing standby to the initiator."""


async def test_what_is_the_other_sides_to_do_is_awaited_and_not_asked_for_over_and_over(short_path: Path) -> None:
    """A session has lost its standby, and the initiator is at it: the responder's keeper must not go round meanwhile.
    It once did so as fast as discovery answered, in every session of a relay that drained."""
    async with inside(short_path) as here:
        relays = [await here.relay(name) for name in ("r1", "r2")]
        a, b = await here.tunnel("a"), await here.tunnel("b")
        await until(lambda: a.reserved() == b.reserved() == {"r1", "r2"}, "both are at both")
        await a.tunnel.ping("b", 1, 30)
        pairing = b.tunnel.sessions.preferred["a"]
        await until(lambda: len(pairing.session.links) == 2, "there is a standby")
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
