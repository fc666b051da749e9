"""One more connection for a session, and what both ends take it for."""

from pathlib import Path

import pytest

from services.tunnel import punching
from services.tunnel.core.link import DIRECT, RELAYED
from services.tunnel.core.punch import Connect
from services.tunnel.peers import PeerAddress, PeerInfo
from services.tunnel.punching import Attempt
from tests.tunnel.inside import inside
from tests.tunnel.local import until


async def test_an_ordinary_connection_is_direct_at_both_ends_also_while_a_hole_is_punched(short_path: Path) -> None:
    """It comes from the address from which the punched one is expected."""
    async with inside(short_path) as here:
        await here.relay("r1")
        a, b = await here.tunnel("a"), await here.tunnel("b", listens=True)
        here.directory.publish(PeerInfo("b"))
        await until(lambda: a.reserved() == b.reserved() == {"r1"}, "both have the relay")
        await a.tunnel.ping("b", 1, 30)
        ends = [node.tunnel.sessions.preferred[peer] for node, peer in ((a, "b"), (b, "a"))]
        assert [[link.kind for link in end.session.links] for end in ends] == [[RELAYED], [RELAYED]]
        attempts = b.tunnel.sessions.punching._running
        attempts.setdefault(ends[1], Attempt(())).connect = Connect(((a.address, 20006),), 0.0)
        here.directory.publish(PeerInfo("b", (PeerAddress(b.address, 20006),)))
        await until(lambda: all(end.session.active.kind != RELAYED for end in ends), "there is a better path")
        assert [end.session.active.kind for end in ends] == [DIRECT, DIRECT]


async def test_who_takes_an_ordinary_connection_for_the_punched_one_yields(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the dialler says comes late, so both say JOIN."""
    monkeypatch.setattr(punching, "SPEAKS_WITHIN", 0.0)
    async with inside(short_path) as here:
        await here.relay("r1")
        a, b = await here.tunnel("a", listens=True), await here.tunnel("b")
        here.directory.publish(PeerInfo("a"))
        await until(lambda: a.reserved() == b.reserved() == {"r1"}, "both have the relay")
        await a.tunnel.ping("b", 1, 30)
        ends = [node.tunnel.sessions.preferred[peer] for node, peer in ((a, "b"), (b, "a"))]
        assert ends[0].keys.initiator
        mistaken, joined = 0, a.tunnel.sessions.punching._joined

        async def counted(*args: object) -> str:
            nonlocal mistaken
            mistaken += 1
            return await joined(*args)

        monkeypatch.setattr(a.tunnel.sessions.punching, "_joined", counted)
        attempts = a.tunnel.sessions.punching._running
        attempts.setdefault(ends[0], Attempt(())).connect = Connect(((b.address, 20006),), 0.0)
        here.directory.publish(PeerInfo("a", (PeerAddress(a.address, 20006),)))
        await until(lambda: all(end.session.active.kind != RELAYED for end in ends), "there is a better path")
        assert mistaken == 1 and [end.session.active.kind for end in ends] == [DIRECT, DIRECT]
