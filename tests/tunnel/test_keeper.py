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
        asked = 0
        resolve = b.view.resolve

        async def counted(name: str, **options: object):
            nonlocal asked
            asked += 1
            return await resolve(name, **options)

        b.view.resolve = counted
        await relays[0].close()
        await until(lambda: len(pairing.session.links) == 1, "the standby is lost")
        asked = 0
        await asyncio.sleep(WATCHED)
        assert asked <= 10
