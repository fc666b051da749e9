"""How sessions begin and which path they fall back to, tunnels and relays in this process."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.tunnel import sessions
from services.tunnel.handshake import NewSession
from services.tunnel.pairing import Pairing
from services.tunnel.peers import PeerAddress, PeerInfo
from services.tunnel.sessions import Sessions
from tests.tunnel.inside import Gate, Inner, Inside, inside
from tests.tunnel.local import Attached, Backend, Exit, receive, send, tcp_pair, until


@pytest.fixture
async def here(short_path: Path) -> AsyncIterator[Inside]:
    async with inside(short_path) as one:
        yield one


class Stream:
    """A stream from one tunnel to another, whose both ends the test holds."""

    def __init__(self, one: Inner, other: Inner) -> None:
        self.one, self.other = one, other
        self._number = 0

    async def __aenter__(self) -> "Stream":
        self._backend = Backend()
        self._exit = await Exit(self.other).__aenter__()
        self._attached = Attached(self.one)
        self._client, accepted = tcp_pair()
        number = self._attached.open(self.other.name, self._backend.address, accepted)
        assert not (await self._attached.result(number)).HasField("refusal")
        self._served = await self._backend.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        for sock in (self._client, self._served):
            sock.close()
        self._attached.close()
        await self._exit.__aexit__()
        self._backend.close()

    async def works(self) -> None:
        """Both ways, and nothing that was said before got lost."""
        for one, other in ((self._client, self._served), (self._served, self._client)):
            self._number += 1
            text = b"%08d" % self._number
            await send(one, text)
            assert await receive(other, 8) == text


@pytest.mark.parametrize("how", [pytest.param("silent", marks=pytest.mark.slow), "reset"])
async def test_a_lost_direct_path_gives_way_to_a_relay(here: Inside, how: str) -> None:
    """FAILURES 5: a direct path has no standby, its relays were retired; when it dies the session returns to one."""
    await here.relay("r1")
    a, b = await here.tunnel("a"), await here.tunnel("b", listens=True)
    async with Gate(here.ground.address(), (b.address, 20006)) as gate:
        here.directory.publish(PeerInfo("b", (PeerAddress(gate.address, gate.port),)))
        await until(lambda: a.reserved() == b.reserved() == {"r1"}, "both hold a reservation")
        async with Stream(a, b) as stream:
            await until(lambda: a.relays_in_use("b") == ["direct"], "the direct path is found")
            pairing = a.tunnel.sessions.preferred["b"]
            await until(lambda: len(pairing.session.links) == 1, "the relay is not needed any more")
            await stream.works()
            if how == "silent":
                gate.shut()
            else:
                await gate.__aexit__()
            await stream.works()
            assert a.relays_in_use("b") == ["r1"]
            assert a.tunnel.sessions.preferred["b"] is pairing


async def test_without_any_relay_those_who_can_be_dialled_are(here: Inside) -> None:
    """FAILURES 14: no relays are configured at all."""
    a, b = await here.tunnel("a"), await here.tunnel("b", listens=True)
    async with Stream(a, b) as stream:
        await stream.works()
    assert a.relays_in_use("b") == ["direct"] and not a.reserved()


@pytest.mark.slow
async def test_relays_that_nobody_names_any_more_serve_until_they_go(here: Inside) -> None:
    """FAILURES 14: the list of relays is emptied under a live stream, and filled again after they were gone."""
    relays = {name: await here.relay(name) for name in ("r1", "r2")}
    addresses = {name: here.directory.records[name].relay_addresses[0][0] for name in relays}
    a, b = await here.tunnel("a"), await here.tunnel("b")
    await until(lambda: a.reserved() == b.reserved() == set(relays), "both hold two reservations")
    async with Stream(a, b) as stream:
        await stream.works()
        for name in relays:
            here.directory.withdraw(name)
        assert not a.tunnel.relays.known()
        await stream.works()
        assert a.reserved() == set(relays), "who serves well is kept"
        for relay in relays.values():
            await relay.close()
        await until(lambda: not a.tunnel.relays.clients and not b.tunnel.relays.clients, "those gone are forgotten")
        for name, address in addresses.items():
            await here.relay(name, address=address)
        await stream.works()


def over(*ends: Sessions) -> bool:
    """Ends what there is; True when nothing was left, or has come back."""
    left = [pairing for end in ends for pairing in end.pairings.values()]
    for pairing in left:
        pairing.end("the test is over")
    return not left and not any(end.keepers for end in ends)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["direct", "relay"])
async def test_both_dial_at_once_and_keep_one_session(here: Inside, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAILURES 20: both dial, both cancel. Here both sessions are made, and both ends choose the same one."""
    monkeypatch.setattr(sessions, "SURPLUS_AFTER", 0.0)
    made: set[bytes] = set()
    register = Sessions._register

    def registered(self: Sessions, new: NewSession, *more: Any) -> Pairing:
        made.add(new.keys.session_id)
        return register(self, new, *more)

    monkeypatch.setattr(Sessions, "_register", registered)
    if path == "relay":
        await here.relay("r1")
    a, b = [await here.tunnel(name, listens=path == "direct") for name in "ab"]
    if path == "relay":
        await until(lambda: a.reserved() == b.reserved() == {"r1"}, "both hold a reservation")
    twice = False
    for _ in range(50):  # about one round in four
        made.clear()
        await asyncio.gather(a.tunnel.sessions.session_with("b", 30), b.tunnel.sessions.session_with("a", 30))
        one, other = a.tunnel.sessions, b.tunnel.sessions

        def agreed(one=one, other=other) -> bool:
            mine, theirs = one.preferred.get("b"), other.preferred.get("a")
            return bool(mine and theirs) and mine.keys.session_id == theirs.keys.session_id

        await until(agreed, "both prefer the same session")
        for inner in (one, other):
            inner.sweep(asyncio.get_running_loop().time() + 1)
        await until(lambda one=one, other=other: len(one.pairings) == len(other.pairings) == 1, "the other one ends")
        twice = len(made) > 1
        async with Stream(a, b) as forth, Stream(b, a) as back:
            await forth.works()
            await back.works()
        if twice:
            break
        await until(lambda one=one, other=other: over(one, other), "the next round can begin")
    assert twice, "they never met: the test shows nothing"
