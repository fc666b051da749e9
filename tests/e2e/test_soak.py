"""How the soak judges its runs."""

import json

from tests.e2e.soak import Found, Soak


def soak(*found: Found, runs: int | None = None, limit: float | None = 0.100) -> Soak:
    return Soak("kill", len(found) if runs is None else runs, limit, list(found))


def test_the_99th_percentile_is_judged() -> None:
    quick, slow = Found(0.090), Found(0.110)
    assert soak(*[quick] * 99, slow).ok
    assert not soak(*[quick] * 98, slow, slow).ok
    assert not soak(*[quick] * 10, slow).ok, "of fewer than 100 the longest"
    assert soak(slow, limit=None).ok


def test_what_the_machine_does_by_itself_is_no_fault_of_the_event() -> None:
    assert soak(*[Found(0.130, 0.040)] * 20).ok
    assert not soak(*[Found(0.150, 0.040)] * 20).ok


def test_a_run_that_lost_something_is_a_failure_however_quick() -> None:
    made = soak(Found(0.01), runs=2)
    assert not made.ok
    made.failures.append("run 2: a byte is missing")
    plain = made.as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert not plain["ok"] and plain["met"] and plain["whole"] == 1
    assert "1 of 2" in made.text() and "limit 100 ms: met" in made.text()
    assert not soak(runs=1).ok
    assert soak(runs=1).text()
