"""A punched link of which a NAT's lifetime is known, and the one that takes its place. All in this process."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.tunnel.core.lifetime import LATE, SAFE
from services.tunnel.core.link import PUNCHED, RELAYED, Link
from services.tunnel.core.punch import MIN_BETWEEN
from services.tunnel.peers import PeerInfo
from tests.tunnel.inside import Inner, Inside, inside
from tests.tunnel.local import until

pytestmark = pytest.mark.slow

LIFETIME = 1000.0  # seconds; the links are made to look old


@pytest.fixture
async def here(short_path: Path) -> AsyncIterator[Inside]:
    """A relay is there."""
    async with inside(short_path) as one:
        await one.relay("r1")
        yield one


async def two(here: Inside) -> tuple[Inner, Inner]:
    """a and b, whose addresses nobody tells; a begins the session, so b starts the punches."""
    nodes = []
    for name in "ab":
        nodes.append(await here.tunnel(name, listens=True))
        here.directory.publish(PeerInfo(name))
    a, b = nodes
    await until(lambda: a.reserved() == b.reserved() == {"r1"}, "both have the relay")
    await a.tunnel.ping("b", 1, 30)
    await until(lambda: settled(a, b), "a hole is punched")
    await asyncio.sleep(MIN_BETWEEN)  # until a takes part in another attempt
    return a, b


def links(node: Inner, peer: str) -> list[Link]:
    return node.tunnel.sessions.preferred[peer].session.links


def active(node: Inner, peer: str) -> Link:
    link = node.tunnel.sessions.preferred[peer].session.active
    assert link is not None
    return link


def settled(a: Inner, b: Inner) -> bool:
    """Both are on one punched link, and have a standby."""
    return all(
        active(node, peer).kind == PUNCHED and sorted(link.kind for link in links(node, peer)) == [PUNCHED, RELAYED]
        for node, peer in ((a, "b"), (b, "a"))
    )


def age(node: Inner, peer: str, share: float) -> None:
    """The node learns that links to a peer are cut at LIFETIME, and takes the one it has for as old as this share."""
    link, now, lifetimes = active(node, peer), time.monotonic(), node.tunnel.lifetimes
    path = (link.owner.local, link.owner.far)
    for ago in (500, 0):
        lifetimes.lost(path, now - ago - LIFETIME, now - ago, now - ago)
    link.started = now - share * LIFETIME


@pytest.mark.parametrize("knows", ["a", "b"])
async def test_whoever_knows_the_lifetime_has_another_hole_punched_beside_the_old_one(here: Inside, knows: str) -> None:
    """FAILURES 18: b starts all punches; a, which does not, asks for one."""
    a, b = await two(here)
    old = active(a, "b"), active(b, "a")
    ports = {link.owner.sock.getsockname()[1] for link in old}
    assert ports == {20006}, "the first one is between the listen ports"
    age(*((a, "b") if knows == "a" else (b, "a")), SAFE + 0.01)
    away, ended = [], asyncio.Event()

    async def talk() -> None:
        while not ended.is_set():
            await a.tunnel.ping("b", 1, 30)
            away.append(active(a, "b").kind != PUNCHED)

    talking = asyncio.create_task(talk())
    await until(lambda: settled(a, b) and active(a, "b") is not old[0] and active(b, "a") is not old[1], "replaced")
    ended.set()
    await talking
    assert away and not any(away), "directly from one to the other"
    assert {link.owner.sock.getsockname()[1] for link in (active(a, "b"), active(b, "a"))}.isdisjoint(ports)
    assert "rotated" in active(a if knows == "a" else b, "b" if knows == "a" else "a").note


async def test_a_link_that_cannot_be_replaced_is_left_for_the_standby_and_few_attempts_are_made(here: Inside) -> None:
    """FAILURES 18, 23: the peer knows no address of its own any more."""
    a, b = await two(here)
    punching = a.tunnel.sessions.punching

    async def none() -> None:
        return None

    fresh, punching._fresh = punching._fresh, none
    pairing = b.tunnel.sessions.preferred["a"]
    attempts = pairing.punch._number
    age(b, "a", LATE - 0.002)
    await until(lambda: active(a, "b").kind == active(b, "a").kind == RELAYED, "both are on the standby")
    await until(lambda: all(link.kind == RELAYED for link in links(a, "b")), "the old one is closed")
    await asyncio.sleep(2.0)
    assert 1 <= pairing.punch._number - attempts <= 6, "three for the old link, three for a better path"
    punching._fresh = fresh
    a.tunnel.sessions.revalidate("network")
    b.tunnel.sessions.revalidate("network")
    await until(lambda: settled(a, b), "a hole is punched again")


async def test_a_fresh_port_is_seen_by_a_relay_and_given_back(here: Inside) -> None:
    """It listens while an attempt lasts; a connection that came out of it stays."""
    a, b = await two(here)
    port = await a.tunnel.sessions.punching._fresh()
    assert port is not None and port.addresses == ((a.address, port.number),)
    _, stays = await asyncio.open_connection(a.address, port.number)
    await port.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(a.address, port.number)
    assert stays.get_extra_info("socket").getpeername() == (a.address, port.number)
    stays.close()
    assert b.tunnel.sessions.punching._running == {}


async def test_without_a_relay_that_sees_it_there_is_no_fresh_port(here: Inside) -> None:
    a, _ = await two(here)
    a.tunnel.relays.clients["r1"].reserved_until = None
    assert await a.tunnel.sessions.punching._fresh() is None
