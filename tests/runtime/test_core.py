"""Token buckets, one and many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.core.age import spell
from services.runtime.core.allowance import Allowance
from services.runtime.core.bucket import TokenBucket


@given(
    st.floats(1, 1e9),
    st.floats(1, 1e9),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1e9)), max_size=50),
)
def test_bucket_never_grants_more_than_rate_and_burst(
    rate: float, burst: float, takings: list[tuple[float, float]]
) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    now = taken = biggest = 0.0
    for pause, amount in takings:
        now += pause
        wait = bucket.wait(now)
        assert (wait > 0) == (bucket.level(now) < min(1.0, burst))
        now += wait * (1 + 1e-9)
        bucket.take(amount, now)
        taken += amount
        biggest = max(biggest, amount)
        # Debt of one taking is allowed, no more.
        assert taken <= (burst + rate * now + biggest) * (1 + 1e-6) + 1
    assert bucket.level(now) <= burst


def test_bucket_ignores_a_clock_that_goes_back() -> None:
    bucket = TokenBucket(1.0, 10.0, 100.0)
    bucket.take(10, 100.0)
    assert bucket.level(50.0) == 0
    assert bucket.level(101.0) == 1


def test_each_may_ask_so_often_and_many_cost_bounded_memory() -> None:
    allowance = Allowance(1, 3, capacity=10)
    assert [allowance.spend("a", 1000.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert allowance.spend("b", 1000.0), "nobody pays for another"
    assert allowance.spend("a", 1001.0) and not allowance.spend("a", 1001.0)
    for number in range(100):
        allowance.spend(f"n{number}", 1000.0)
    assert len(allowance) == 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172_800, "2 days")],
)
def test_ages_are_spelt_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert spell(seconds) == text
