"""Links that are replaced, or left, because a NAT will cut them. All in this process."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.tunnel import joining, rotation
from services.tunnel.core.lifetime import LATE
from services.tunnel.core.link import Link, RoundTrip
from services.tunnel.errors import LinkFailed
from services.tunnel.pairing import Pairing
from tests.tunnel.inside import Inner, inside
from tests.tunnel.local import until

LIFETIME = 1000.0  # seconds; the links are made to look old


@pytest.fixture
async def a(short_path: Path) -> AsyncIterator[Inner]:
    """A node with a session to b over both of two relays."""
    async with inside(short_path) as here:
        for name in ("r1", "r2"):
            await here.relay(name)
        a, b = await here.tunnel("a"), await here.tunnel("b")
        await until(lambda: a.reserved() == b.reserved() == {"r1", "r2"}, "both are at both")
        await a.tunnel.ping("b", 1, 30)
        await until(
            lambda: len([it for it in to_b(a).session.links if it.path_rtt.smoothed]) == 2, "there is a standby"
        )
        yield a


def to_b(a: Inner) -> Pairing:
    return a.tunnel.sessions.preferred["b"]


async def test_a_link_that_cannot_be_replaced_is_left_for_the_standby_in_time(
    a: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAILURES 18: its relay gives no circuit to the peer any more."""
    pairing, relays, lifetimes = to_b(a), a.tunnel.relays, a.tunnel.lifetimes
    old = pairing.session.active
    assert old is not None
    circuit = relays.circuit

    async def refused(relay: str, peer: str, traceparent: str = ""):
        if relay == old.relay:
            raise LinkFailed("no circuit")
        return await circuit(relay, peer, traceparent)

    monkeypatch.setattr(relays, "circuit", refused)
    now, path = time.monotonic(), (old.owner.local, old.owner.far)
    for ago in (500, 0):
        lifetimes.lost(path, now - ago - LIFETIME, now - ago, now - ago)
    old.started = now - LATE * LIFETIME
    await until(lambda: pairing.session.active not in (None, old), "the other one serves")
    assert "left" in old.note and not pairing.ended


async def test_a_link_that_was_never_measured_does_not_take_over(a: Inner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer has said something on it, and answered no question."""
    monkeypatch.setattr(rotation, "WITHIN", 0.0)  # so no answer is waited for
    pairing, join, joined = to_b(a), joining.join, []
    old, before = pairing.session.active, set(pairing.session.links)
    assert old is not None

    async def unmeasured(*args: Any) -> Link | None:
        new = await join(*args)
        await until(lambda: new.usable, "it is confirmed")
        new.path_rtt = RoundTrip()
        joined.append(new)
        return new

    monkeypatch.setattr(joining, "join", unmeasured)
    await a.tunnel.rotation._rotate_link(pairing, old)
    assert joined and pairing.session.active is old and not old.closing
    await until(lambda: set(pairing.session.links) == before, "and is not kept beside it")
