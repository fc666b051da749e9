"""How soon the own record is published again: after a refusal, silence, or word of another node of this name."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from services.discovery import wire
from services.discovery.bell import Bell
from services.discovery.core.contacts import Contact, Endpoint
from services.discovery.core.model import Record, Signed
from services.discovery.core.own import LIFETIME
from services.discovery.core.registry import Named
from services.discovery.peers import NodeClient, PutAnswer, Refused
from services.discovery.probe import Unreachable
from services.discovery.resolver import Resolver
from services.discovery.sources.dht import Dht
from services.discovery.sources.publish import MAX_PAUSE, REFUSED, SUSPICIOUS, Publisher

from ..conftest import WriteConfig
from ..patience import until
from .nodes import Part, part

WHERE = Endpoint("203.0.113.1", 20008)


class Clock(Bell):
    """A bell at which nobody waits long: `waits` are the times they would have, and the wall clock moves on by them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_800_000_000.0
        self.waits: list[float] = []

    def wall(self) -> float:
        return self.now

    async def wait(self, seen: int, timeout: float | None = None) -> int:
        assert timeout is not None
        self.waits.append(timeout)
        self.now += timeout + 0.001  # a timer is never early
        await asyncio.sleep(0.001)
        return self.count


class Contacts(NodeClient):
    """`answer` says what a contact answers to a publication."""

    def __init__(self, home: Part, answer: Callable[[Signed], Signed | None]) -> None:
        super().__init__(home.identity, Resolver())
        self._home, self._answer = home, answer

    async def put(self, contact: Contact, signed: Signed, *, timeout: float) -> PutAnswer:
        return PutAnswer(self._home.directory.signed(), WHERE, self._answer(signed))


async def waits(node_config: WriteConfig, count: int, answer: Callable[[Part, Signed], Signed | None]) -> list[float]:
    """Between the first publications at one contact."""
    clock = Clock()
    home = part(node_config("a"), wall=clock.wall)
    directory = home.directory
    directory.own_bell = directory.wake_bell = clock
    directory.settings = replace(directory.settings, bootstrap=(WHERE,))
    client = Contacts(home, lambda signed: answer(home, signed))
    publisher = Publisher(directory, client, Dht(directory, client, random.Random(1)), random.Random(1))
    task = asyncio.create_task(publisher.run())
    try:
        await until(lambda: len(clock.waits) >= count, "it publishes again and again")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return clock.waits[:count]


async def test_one_that_refuses_is_asked_again_after_minutes_and_a_silent_one_after_seconds(
    node_config: WriteConfig,
) -> None:
    answers = iter([Refused("r refused: TABLE_FULL"), Unreachable("r: no answer")] * 10)

    def answer(_home: Part, _signed: Signed) -> None:
        raise next(answers)

    found = await waits(node_config, 12, answer)
    assert all(it >= REFUSED[0] * 0.75 for it in found[::2]) and max(found) <= REFUSED[1] * 1.25
    assert all(it <= MAX_PAUSE * 1.25 for it in found[1::2])


async def test_where_another_node_of_this_name_published_ours_is_soon_published_again(
    node_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is plain that it was a former run of this one."""
    monkeypatch.setattr("services.discovery.sources.publish.DEBOUNCE", 0.0)
    calls = 0

    def answer(home: Part, signed: Signed) -> Signed | None:
        nonlocal calls
        calls += 1
        if calls > 1:
            return None
        now = home.directory.wall()
        return wire.seal(home.identity, Record("a", home.identity.cluster, 1, now, now + 600, "former"))

    found = await waits(node_config, 6, answer)
    for wait, pause in zip(found, (SUSPICIOUS, 2 * SUSPICIOUS, 4 * SUSPICIOUS, 8 * SUSPICIOUS), strict=False):
        assert 0.9 * pause <= wait <= pause, found
    assert found[5] > LIFETIME / 2 * 0.9


async def test_nobody_is_published_at_twice(node_config: WriteConfig) -> None:
    """A first contact, known by its address, may turn out to be a relay that the file names, or a holder."""
    home = part(
        node_config(
            "a", modules={"edgeTunnel": {"relayNodes": [{"nodeName": "r", "advertiseAddress": ["203.0.113.1"]}]}}
        )
    )
    directory = home.directory
    other = Endpoint("203.0.113.2", 20008)
    directory.settings = replace(directory.settings, bootstrap=(WHERE, other))
    directory.registry.configure([Named("r", 1, (WHERE.host,))])
    client = Contacts(home, lambda _: None)
    dht = Dht(directory, client, random.Random(1))
    publisher = Publisher(directory, client, dht, random.Random(1))
    assert [it.key for it in publisher._wanted()] == [str(WHERE), str(other), "r"], "nobody has answered yet"
    publisher._names = {str(WHERE): "r", str(other): "s", "203.0.113.9:20008": "gone"}
    dht.holders = [Contact("r", (WHERE,)), Contact("s", (other,)), Contact("t", (other,))]
    assert [it.key for it in publisher._wanted()] == [str(other), "r", "t"]
    assert publisher._names.keys() == {str(WHERE), str(other)}


async def test_the_alarm_over_a_double_ends_when_it_is_not_met_any_more(node_config: WriteConfig) -> None:
    clock = Clock()
    directory = part(node_config("a"), wall=clock.wall).directory
    double = Record("a", "default", 1, clock.now, clock.now + 600, "other")
    directory.meet_double(double, "publishing here")
    clock.now += LIFETIME - 1
    directory.forget_double()
    assert directory.board.warnings
    directory.meet_double(double, "publishing here")
    clock.now += LIFETIME - 1
    directory.forget_double()
    assert directory.board.warnings, "it was met again"
    clock.now += 2
    directory.forget_double()
    assert not directory.board.warnings
