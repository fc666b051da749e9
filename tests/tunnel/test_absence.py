"""A silence that falls into a time when we did not run ourselves."""

import asyncio
import time
from pathlib import Path

import pytest

from services.tunnel.core.absence import KEPT, LATE, Absences
from services.tunnel.core.link import RELAYED, SUSPECT_CEILING, SUSPECT_FLOOR, Link
from tests.tunnel.harness import PlainCipher
from tests.tunnel.inside import inside
from tests.tunnel.local import until


def absent(*gaps: tuple[float, float]) -> Absences:
    made = Absences()
    for began, ended in gaps:
        made.note(began, ended)
    return made


def test_what_falls_into_a_time_counts_and_no_more() -> None:
    gaps = absent((1.0, 1.2), (2.0, 2.5))
    assert gaps.within(0.0, 3.0) == pytest.approx(0.7)
    assert gaps.within(1.1, 3.0) == pytest.approx(0.6)
    assert gaps.within(2.25, 3.0) == pytest.approx(0.25)
    assert gaps.within(1.2, 2.25) == pytest.approx(0.25)
    assert gaps.within(2.5, 3.0) == 0.0


def test_a_turn_that_is_hardly_late_is_no_absence_and_few_are_remembered() -> None:
    assert absent((1.0, 1.0 + LATE / 2)).within(0.0, 3.0) == 0.0
    assert absent((float("inf"), 1.0)).within(0.0, 3.0) == 0.0, "nothing was due"
    many = absent(*((float(it), it + 0.5) for it in range(10 * KEPT)))
    assert many.within(0.0, 1e6) == pytest.approx(0.5 * KEPT)


def asked() -> Link:
    """One that answered in 20 ms until it was asked again, at 0."""
    link = Link(1, RELAYED, PlainCipher(), 0.0, relay="r1")
    link.path_rtt.sample(0.02)
    link.ping_sent = 0.0
    return link


def test_a_link_is_suspected_for_a_silence_that_we_have_heard() -> None:
    link = asked()
    assert not link.silent(SUSPECT_FLOOR - 0.01, absent()) and link.silent(SUSPECT_FLOOR + 0.01, absent())
    away = absent((0.05, 0.55))
    assert not link.silent(0.56, away), "the answer may have come meanwhile"
    assert not link.silent(SUSPECT_FLOOR + 0.49, away)
    assert link.silent(SUSPECT_FLOOR + 0.51, away), "there was time enough to read it"
    assert link.silent(SUSPECT_FLOOR + 0.01, absent((-0.5, 0.0))), "what was before the question excuses nothing"


def test_on_a_host_that_is_always_starved_a_dead_link_is_noticed_too() -> None:
    link = asked()
    starved = absent(*((it / 10, it / 10 + 0.095) for it in range(15)))  # until SUSPECT_CEILING
    assert not link.silent(SUSPECT_CEILING - 0.001, starved)
    assert link.silent(SUSPECT_CEILING + 0.01, starved)


@pytest.mark.slow
async def test_a_tunnel_knows_when_it_did_not_run(short_path: Path) -> None:
    async with inside(short_path) as here:
        await here.relay("r1")
        a, b = await here.tunnel("a"), await here.tunnel("b")
        await until(lambda: a.reserved() == b.reserved() == {"r1"}, "both can be reached")
        await a.tunnel.ping("b", 1, 30)
        talking = asyncio.create_task(a.tunnel.ping("b", 1000, 600))
        began = time.monotonic()

        def noticed() -> bool:
            time.sleep(0.2)  # the whole loop stands still, as it does on a host that lets others run
            return a.tunnel.sessions.absences.within(began, time.monotonic()) > 0.1

        try:
            await until(noticed, "it is noticed")
        finally:
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)
