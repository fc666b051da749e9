"""Backends and nodes that fail, retries, and who counts as a connection. All with fake time."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core.catalog import Backend
from services.proxy.core.health import EJECT_AFTER, EJECT_FIRST, EJECT_LAST, RETRY_MOST, TRIAL, Health, RetryBudget
from services.proxy.core.patience import ATTEMPT, CONNECT, of_exits, patience
from services.proxy.core.plan import Wanted
from services.proxy.core.traffic import ROUND_ROBIN, Traffic
from services.proxy.route import Route, Use
from tests.proxy.test_balancing import HTTP, asking, backends, balancer, spread


def test_a_backend_that_keeps_failing_is_left_out_and_found_again_when_it_returns() -> None:
    dead, *well = backends(3)
    made = balancer(backends(3))
    for _ in range(EJECT_AFTER - 1):
        assert not made.health.failed(dead, 0.0)
    assert made.health.failed(dead, 0.0)
    assert set(spread(made, 90, now=EJECT_FIRST / 2)) == set(well)

    now, pause = 0.0, EJECT_FIRST
    for _ in range(4):  # each trial costs one client one retry, and the pauses grow to a bound
        now += pause
        assert spread(made, 90, now)[dead] == 1
        assert made.health.failed(dead, now)
        pause = min(pause * 2, EJECT_LAST)
    now += pause
    assert pause == EJECT_LAST
    assert spread(made, 90, now)[dead] == 1
    made.health.worked(dead)
    assert spread(made, 90, now)[dead] == 30


def test_a_trial_without_an_answer_is_repeated() -> None:
    dead, other = backends(2)
    made = balancer((dead, other))
    for _ in range(EJECT_AFTER):
        made.health.failed(dead, 0.0)
    assert spread(made, 40, EJECT_FIRST)[dead] == 1
    assert spread(made, 40, EJECT_FIRST + TRIAL / 2)[dead] == 0
    assert spread(made, 40, EJECT_FIRST + TRIAL)[dead] == 1


def test_clients_on_their_way_when_a_backend_is_ejected_do_not_lengthen_its_pause() -> None:
    (dead,) = backends(1)
    health = Health()
    health.keep((dead,))
    for _ in range(EJECT_AFTER):
        health.failed(dead, 0.0)
    health.failed(dead, 0.0 + TRIAL)
    for _ in range(20):
        health.failed(dead, TRIAL + 0.1)
    assert health.ejected(TRIAL + EJECT_FIRST * 2 - 0.1) == [dead]
    assert health.ejected(TRIAL + EJECT_FIRST * 2 + 0.1) == []


def test_when_all_are_dead_all_are_tried_and_one_success_in_between_clears_a_name() -> None:
    made = balancer(backends(2))
    for backend in backends(2):
        for _ in range(EJECT_AFTER):
            made.health.failed(backend, 0.0)
    assert set(spread(made, 10)) == set(backends(2))
    health = Health()
    for _ in range(10):
        health.failed(backends(1)[0], 0.0)
        health.worked(backends(1)[0])
    assert not health


def test_a_node_that_cannot_be_reached_takes_all_of_its_backends_out_after_three_failures_in_all() -> None:
    lost, other = backends(50), Backend("c", "10.0.1.1", 80)
    made = balancer((*lost, other))
    for _ in range(EJECT_AFTER - 1):
        assert not made.health.failed("b", 0.0)
    assert made.health.failed("b", 0.0)
    assert set(spread(made, 90, EJECT_FIRST / 2)) == {other}
    seen = spread(made, 90, EJECT_FIRST)  # one client as a trial, of whichever of them
    assert seen[other] == 89
    (trial,) = (backend for backend in seen if backend != other)
    assert trial is not None
    made.health.worked(trial)
    assert set(spread(made, 102, EJECT_FIRST)) == {*lost, other}
    made.health.failed("b", 2.0)
    made.update((other,), ROUND_ROBIN)
    assert not made.health, "what is gone is forgotten, a node as well"


def test_somebody_else_is_well_only_while_not_tried_and_not_left_out() -> None:
    one, two, three = backends(3)
    made = balancer((one, two, three))
    assert made.spare((one,), 0.0) and made.spare((one, two), 0.0)
    assert not made.spare((one, two, three), 0.0)
    for _ in range(EJECT_AFTER):
        made.health.failed(three, 0.0)
    assert not made.spare((one, two), 0.0)
    assert not balancer((one,)).spare((one,), 0.0)


def test_an_attempt_is_short_only_while_others_are_well() -> None:
    assert patience(CONNECT, others=True) == ATTEMPT < patience(CONNECT, others=False) == CONNECT
    assert patience(0.1, others=True) == patience(0.1, others=False) == 0.1
    alone, two = asking(), replace(asking(), key="default/two", endpoints=asking().endpoints * 2)
    assert of_exits([alone, two], {"default/web": 2.0}) == {"default/web": 2.0, "default/two": ATTEMPT}


def test_a_client_counts_from_the_choice_to_its_end_and_only_once() -> None:
    one, two = backends(2)
    made = balancer((one, two), "least-connections")
    route = Route(Wanted("default/web", HTTP, (one, two), made.traffic), made, 1)
    for _ in range(50):  # a burst, of which none has been accepted yet
        backend = made.pick("x", 0.0)
        assert backend is not None
        Use.begin(route, backend)
    assert made.active == {one: 25, two: 25}

    made.update((one, two), ROUND_ROBIN)  # a live change of the policy …
    uncounted = [Use.begin(route, one) for _ in range(10)]
    made.update((one, two), Traffic("p2c"))
    counted = Use.begin(route, one)
    for use in uncounted:  # … of which those who never counted do not take others' places
        use.end()
    assert made.active == {one: 26, two: 25}
    counted.end()
    counted.end()
    assert made.active[one] == 25

    gone = Use.begin(route, two)
    made.update((one,), Traffic("p2c"))
    made.update((one, two), Traffic("p2c"))
    gone.end()
    assert made.active[two] == 25, "they live on, whether their backend is listed or not"


def test_from_a_dead_backend_to_one_that_is_well_costs_no_retry() -> None:
    members = backends(3)
    made = balancer(members)
    route = Route(Wanted("default/web", HTTP, members, ROUND_ROBIN), made, 1)
    dead, *well = members
    while route.budget.take(time.monotonic()):
        pass
    assert route.next("x", (dead,), "", 0.0) is None
    for _ in range(EJECT_AFTER):
        made.health.failed(dead, 0.0)
    assert route.next("x", (dead,), "", 0.0) in well
    for backend in well:
        for _ in range(EJECT_AFTER):
            made.health.failed(backend, 0.0)
    assert route.next("x", (dead,), "", 0.0) is None, "all fail: retries would only be more of it"


def test_retries_are_a_share_of_the_clients() -> None:
    budget = RetryBudget(0.0)
    assert sum(budget.take(0.0) for _ in range(1000)) == RETRY_MOST
    for _ in range(100):
        budget.client()
    assert sum(budget.take(0.0) for _ in range(1000)) == pytest.approx(20, abs=1)
    assert sum(budget.take(2.0) for _ in range(1000)) == pytest.approx(20, abs=1)  # 10 a second


@given(st.lists(st.tuples(st.sampled_from("fwpn"), st.integers(0, 3)), max_size=80))
def test_health_never_loses_a_client_and_stays_small(steps: list[tuple[str, int]]) -> None:
    members = backends(4)
    made, now = balancer(members), 0.0
    for step, index in steps:
        match step:
            case "f":
                made.health.failed(members[index], now)
            case "w":
                made.health.worked(members[index])
            case "p":
                assert made.pick("x", now, members[:index]) in members[index:]
            case "n":
                now += index / 2
    assert len(made.health.ejected(now)) <= 4
    made.update(members[:1], ROUND_ROBIN)
    assert made.health.ejected(now) in ([], [members[0]])
