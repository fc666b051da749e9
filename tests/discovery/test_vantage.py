"""What is dialled for others, how often, and who is asked to: pure, with a made-up clock."""

from __future__ import annotations

import pytest

from services.discovery.core.errors import BadTarget, LimitReached, WorkRequired
from services.discovery.core.round import (
    FORGOTTEN,
    GRACE,
    MAX_HANDED,
    MAX_REGULARS,
    RARE,
    REPORT,
    SOON,
    USUAL,
    YOUNG,
    Regulars,
    Round,
)
from services.discovery.core.vantage import (
    MAX_OPEN,
    PEER_PER_MINUTE,
    PER_MINUTE,
    WORK,
    Guard,
    check,
    target,
    worth_a_call,
)
from services.runtime.core.allowance import CAPACITY

CALLER = "203.0.113.9"
TOKENS = [bytes([number]) * 16 for number in range(200)]


# --- what --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ip", ["", CALLER])
def test_the_callers_own_address_is_dialled_freely(ip: str) -> None:
    assert target(ip, CALLER, 0, loopback=False) == CALLER
    assert target(ip and "192.168.7.7", "192.168.7.7", 0, loopback=False) == "192.168.7.7"


@pytest.mark.parametrize("ip", ["198.51.100.7", "2001:db8::7"])
def test_another_public_address_costs_work(ip: str) -> None:
    assert target(ip, CALLER, WORK, loopback=False) == ip
    with pytest.raises(WorkRequired):
        target(ip, CALLER, WORK - 1, loopback=False)


FORBIDDEN = """
10.1.2.3 172.16.0.1 192.168.1.1 100.64.0.1 127.0.0.1 ::1 169.254.1.1 169.254.169.254 fe80::1 fd00::1 224.0.0.1 ff02::1
0.0.0.0 :: 255.255.255.255 ::ffff:10.0.0.1 64:ff9b::10.0.0.1 nonsense example.org 203.0.113.9:80
"""


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize(
    "ip", ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "224.0.0.1", "0.0.0.0", "::ffff:127.0.0.1"]
)
def test_no_name_is_called_at_an_address_that_is_not_a_nodes(ip: str, near: bool) -> None:
    assert not worth_a_call(ip, 20008, CALLER, near=near, loopback=False)


def test_a_name_is_called_where_it_is_seen_at_public_addresses_and_by_neighbours_in_the_lan() -> None:
    assert worth_a_call("192.168.7.7", 20008, "192.168.7.7", near=False, loopback=False)
    assert worth_a_call("198.51.100.7", 20008, CALLER, near=False, loopback=False)
    assert worth_a_call("10.1.2.3", 20008, CALLER, near=True, loopback=False)
    assert not worth_a_call("10.1.2.3", 20008, CALLER, near=False, loopback=False)
    assert worth_a_call("127.0.0.2", 20008, "127.0.0.3", near=False, loopback=True)
    assert not worth_a_call(CALLER, 443, CALLER, near=True, loopback=True)


@pytest.mark.parametrize("ip", FORBIDDEN.split())
def test_what_means_another_machine_here_is_dialled_at_no_price(ip: str) -> None:
    with pytest.raises(BadTarget):
        target(ip, CALLER, 10 * WORK, loopback=False)


def test_nobody_knows_where_the_call_comes_from() -> None:
    with pytest.raises(BadTarget):
        target("", "", WORK, loopback=False)


def test_on_loopback_only_loopback_is_free() -> None:
    assert target("127.0.0.9", "127.0.0.1", 0, loopback=True) == "127.0.0.9"
    with pytest.raises(BadTarget):
        target("10.0.0.1", "127.0.0.1", WORK, loopback=True)


@pytest.mark.parametrize("port", [0, 1, 22, 443, 1023, 65_536, 2**31])
def test_ports_of_the_system_are_never_dialled(port: int) -> None:
    with pytest.raises(BadTarget):
        check(port, TOKENS[0])


@pytest.mark.parametrize("length", [0, 15, 17, 1000])
def test_what_is_said_is_16_bytes(length: int) -> None:
    check(20007, TOKENS[0])
    with pytest.raises(BadTarget):
        check(20007, bytes(length))


# --- how often ---------------------------------------------------------------------------------------------------------


def granted(guard: Guard, peer: str, now: float, *, done: bool = True) -> bool:
    try:
        guard.enter(peer, now)
    except LimitReached:
        return False
    if done:
        guard.done(peer)
    return True


def test_one_node_has_its_share_and_no_more_until_time_has_passed() -> None:
    guard = Guard()
    assert sum(granted(guard, "a", 0.0) for _ in range(100)) == PEER_PER_MINUTE
    assert granted(guard, "b", 0.0)
    assert sum(granted(guard, "a", 60.0) for _ in range(100)) == PEER_PER_MINUTE


def test_all_together_have_theirs() -> None:
    guard = Guard()
    assert sum(granted(guard, f"node-{number}", 0.0) for number in range(1000)) == PER_MINUTE
    assert sum(granted(guard, f"node-{number}", 30.0) for number in range(1000)) == PER_MINUTE // 2


def test_dials_under_way_are_bounded_one_for_each() -> None:
    guard = Guard()
    assert granted(guard, "a", 0.0, done=False) and not granted(guard, "a", 0.0)
    assert [granted(guard, f"node-{n}", 0.0, done=False) for n in range(MAX_OPEN)] == [True] * (MAX_OPEN - 1) + [False]
    guard.done("a")
    assert granted(guard, "a", 0.0)


def test_the_memory_of_who_asked_is_bounded() -> None:
    guard = Guard()
    for number in range(3 * CAPACITY):
        granted(guard, f"node-{number}", float(number))
    assert len(guard) <= CAPACITY


# --- who is asked ------------------------------------------------------------------------------------------------------


def test_each_vantage_is_asked_once_a_round_as_long_as_there_are_tokens() -> None:
    round, regulars = Round(20007, TOKENS[:2], 5.0), Regulars(0.0)  # noqa: A001
    wish, again = regulars.come("a", round, 0.0)
    assert wish is not None and (wish.port, wish.token, again) == (20007, TOKENS[0], 5.0)
    assert regulars.come("a", round, 1.0) == (None, 5.0)
    assert round.take("b") == TOKENS[1] and not round.open("c")
    assert regulars.come("c", round, 1.0) == (None, 5.0)
    assert regulars.come("a", Round(20007, TOKENS[2:3], 5.0), 2.0)[0] is not None


def test_a_report_counts_for_the_one_who_was_asked_and_once() -> None:
    regulars = Regulars(0.0)
    regulars.come("a", Round(20007, TOKENS[:1], 5.0), 0.0)
    assert not regulars.report("b", TOKENS[0]) and not regulars.report("a", TOKENS[1])
    assert regulars.report("a", TOKENS[0]) and not regulars.report("a", TOKENS[0])


def test_dials_that_are_never_reported_are_forgotten() -> None:
    regulars = Regulars(0.0)
    for number in range(2 * MAX_HANDED):
        regulars.come("a", Round(20007, TOKENS[number : number + 1], 5.0), 0.0)
    assert not regulars.report("a", TOKENS[0]) and regulars.report("a", TOKENS[2 * MAX_HANDED - 1])


def test_a_few_come_often_and_the_others_rarely() -> None:
    regulars = Regulars(0.0)
    found = [regulars.come(f"node-{number}", Round(20007, TOKENS, 5.0), 0.0) for number in range(2 * MAX_REGULARS)]
    assert [wish is not None for wish, _ in found] == [True] * MAX_REGULARS + [False] * MAX_REGULARS
    assert [again for _, again in found] == [5.0] * MAX_REGULARS + [RARE] * MAX_REGULARS
    assert len(regulars) == MAX_REGULARS
    # Those who stay away make room.
    assert regulars.come("late", None, FORGOTTEN + REPORT + GRACE + 1) == (None, USUAL)


def test_in_its_first_minute_a_service_may_still_be_asked_for_a_round() -> None:
    regulars = Regulars(0.0)
    assert regulars.come("a", None, YOUNG / 2) == (None, SOON)
    assert regulars.come("a", None, YOUNG) == (None, USUAL)


def test_who_does_not_come_back_is_late() -> None:
    regulars, now = Regulars(-YOUNG), 100.0
    assert regulars.next_late(now) is None
    regulars.come("a", None, now)
    regulars.come("b", Round(20007, TOKENS[:1], 5.0), now)
    assert regulars.next_late(now) == REPORT + GRACE
    assert regulars.late(now + REPORT + GRACE) == ["b"]
    assert sorted(regulars.late(now + USUAL + GRACE)) == ["a", "b"]
    regulars.come("a", None, now + USUAL + GRACE)
    assert regulars.late(now + USUAL + GRACE) == ["b"]
