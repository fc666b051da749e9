"""The restart policy, with time as an argument."""

import random

from causeway.restart import FIRST_DELAY, HEALTHY_AFTER, JITTER, LAST_DELAY, Backoff


def crash(backoff: Backoff, now: float, lived: float) -> tuple[float, float]:
    """One life of `lived` seconds; returns the time of the next start and the delay before it."""
    backoff.started(now)
    delay = backoff.ended(now + lived)
    return now + lived + delay, delay


def within(delay: float, nominal: float) -> bool:
    return nominal * (1 - JITTER) <= delay <= nominal


def test_delays_double_up_to_the_cap() -> None:
    backoff = Backoff(random.Random(1))
    now = 1000.0
    for number in range(12):
        now, delay = crash(backoff, now, lived=0.1)
        assert within(delay, min(LAST_DELAY, FIRST_DELAY * 2**number)), (number, delay)


def test_a_healthy_life_forgets_earlier_crashes() -> None:
    backoff = Backoff(random.Random(2))
    now = 0.0
    for _ in range(6):
        now, _ = crash(backoff, now, lived=1.0)
    now, delay = crash(backoff, now, lived=HEALTHY_AFTER)
    assert within(delay, FIRST_DELAY)
    _, delay = crash(backoff, now, lived=1.0)
    assert within(delay, 2 * FIRST_DELAY)


def test_almost_healthy_is_not_healthy() -> None:
    backoff = Backoff(random.Random(3))
    now, _ = crash(backoff, 0.0, lived=HEALTHY_AFTER - 0.001)
    _, delay = crash(backoff, now, lived=HEALTHY_AFTER - 0.001)
    assert within(delay, 2 * FIRST_DELAY)


def test_ten_thousand_crashes_stay_at_the_cap() -> None:
    backoff = Backoff(random.Random(4))
    now = 0.0
    for _ in range(10_000):
        now, delay = crash(backoff, now, lived=0.0)
    assert within(delay, LAST_DELAY)


def test_nodes_that_failed_together_do_not_start_together() -> None:
    delays = {crash(Backoff(random.Random(seed)), 0.0, lived=0.0)[1] for seed in range(20)}
    assert len(delays) == 20
