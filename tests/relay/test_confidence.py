"""Whether a node can be reached, whether it is a relay, and when others are asked again: pure, with a made-up clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relay.core import confidence, role
from services.relay.core.confidence import CONFIDENCE, MAX_ADDRESSES, WINDOW, Reachability, Sample, Window
from services.relay.core.pace import FIRST, Pace
from services.relay.core.role import MIN_THROUGHPUT, MIN_UPTIME, Role

IP, OTHER = "203.0.113.1", "192.168.1.2"
FAST = 10 * MIN_THROUGHPUT


def window(dials: str) -> Window:
    """ "a" to "z": that vantage got through; "A" to "Z": it did not."""
    made = Window()
    for now, letter in enumerate(dials):
        made.add(Sample(letter.lower(), letter.islower(), "no answer", FAST if letter.islower() else 0), float(now))
    return made


@pytest.mark.parametrize(
    ("dials", "up"),
    [
        ("", None),
        ("a", None),
        ("aa", True),  # the only vantage there is, twice
        ("ab", True),
        ("aAa", None),  # one more success than failures is not enough
        ("aaB", True),  # once up, one failure changes nothing
        ("Baa", None),  # there are two vantages, and only one got through
        ("Baaa", None),
        ("Baab", True),
        ("A", None),
        ("AA", False),
        ("AB", False),
        ("aAA", None),
        ("aAAA", False),
        ("ababaA", True),
        ("ababaAAA", True),
        ("ababaABAB", False),  # the window has forgotten all but one success
        ("AAaa", False),
        ("AAAAAabab", True),
        ("abABabABabABabAB", True),  # contradictions leave it as it was
        ("ABabABabABabABab", False),
        ("AbbbbB", None),  # what speaks against it has left the window, with a failed dial
    ],
)
def test_verdict(dials: str, up: bool | None) -> None:
    assert window(dials).up is up


def test_a_window_tells_since_when_and_who_and_how_fast() -> None:
    found = window("cabab")
    assert found.up and found.since == 1.0
    assert found.witnesses(True) == ["c", "a", "b"] and found.throughput == FAST
    assert window("abababA").since == 1.0 and window("abababABABAB").since == 9.0
    assert window("abA").failure() == "a: no answer" and window("ab").failure() == ""


@given(st.text(alphabet="abAB", max_size=60))
def test_a_verdict_never_contradicts_its_window(dials: str) -> None:
    before = None
    for end in range(len(dials) + 1):
        found = window(dials[:end])
        lead = sum(1 if it.success else -1 for it in found.samples)
        assert len(found.samples) <= WINDOW
        if found.up is not before:
            # It changes with a clear lead only, and in the direction of the last dial.
            assert abs(lead) >= CONFIDENCE and found.up is (lead > 0) and found.samples[-1].success is found.up
        if abs(lead) >= CONFIDENCE and len({it.vantage for it in found.samples if it.success}) == 2:
            assert found.up is (lead > 0)
        before = found.up


def reached(dials: str, ip: str = IP, found: Reachability | None = None, throughput: int = FAST) -> Reachability:
    found = found or Reachability()
    for now, letter in enumerate(dials):
        sample = Sample(letter.lower(), letter.islower(), "no answer", throughput if letter.islower() else 0)
        found.add(ip, sample, float(now))
    return found


def test_addresses_are_judged_apart_and_their_number_is_bounded() -> None:
    found = reached("AB", OTHER, reached("ab"))
    assert (found.verdict(IP), found.verdict(OTHER), found.verdict("192.0.2.1")) == (True, False, None)
    assert list(found.up()) == [IP] and list(found.down()) == [OTHER] and found.settled
    assert not reached("A", found=found).settled
    for number in range(3 * MAX_ADDRESSES):
        reached("a", f"198.51.100.{number}", found)
        reached("a", IP, found)
    assert len(found) == MAX_ADDRESSES and found.verdict(IP)
    found.forget([IP, "192.0.2.1"])
    assert found.verdict(IP) is None


def test_a_vantage_that_does_not_come_back_counts_where_it_had_got_through() -> None:
    found = reached("AB", OTHER, reached("abab"))
    found.miss("stranger", "it has not come back", 9.0)
    assert found.settled
    for vantage in "abab":
        assert found.verdict(IP)
        found.miss(vantage, "it has not come back", 9.0)
    assert found.verdict(IP) is False and "not come back" in found.down()[IP].failure()
    assert found.since == 0.0


def test_what_a_former_run_proved_is_believed_until_two_dials_disprove_it() -> None:
    found = Reachability()
    found.remember(IP, FAST, 5.0)
    assert found.up() and found.settled and found.throughput == FAST and found.since == 5.0
    reached("A", found=found)
    assert found.verdict(IP) and not found.settled
    reached("A", found=found)
    assert found.verdict(IP) is False and found.throughput == 0
    reached("abab", found=found)
    assert found.verdict(IP)


# --- role --------------------------------------------------------------------------------------------------------------


def decide(mode: str, addresses: list[str] | None, found: Reachability, uptime: float = 60.0, own: bool = True) -> Role:
    nodes = [("r", addresses)] if addresses is not None else []
    return role.decide(mode, "r", nodes, found, uptime=uptime, own=lambda _: own)


@pytest.mark.parametrize(
    ("mode", "addresses", "dials", "own", "active", "condition", "reachable"),
    [
        # Named: on from the start where the address is its own, until that is disproved.
        ("auto", [IP], "", True, True, "Configured", "NotProbed"),
        ("auto", [IP], "A", True, True, "Configured", "NotProbed"),
        ("auto", [IP], "AB", True, False, "Unreachable", "Unreachable"),
        ("auto", [IP], "ab", True, True, "Proven", "DialledBack"),
        ("auto", [IP, OTHER], "AB", True, True, "LanOnly", "Unreachable"),  # the other one is for its LAN
        # A router's address has to be proven first.
        ("auto", [IP], "", False, False, "Unproven", "NotProbed"),
        ("auto", [IP], "a", False, False, "Unproven", "NotProbed"),
        ("auto", [IP], "ab", False, True, "Proven", "DialledBack"),
        ("auto", [IP], "AB", False, False, "Unreachable", "Unreachable"),
        ("auto", [], "ab", True, False, "NoUsableAddress", "DialledBack"),
        # Not named: earned.
        ("auto", None, "", True, False, "Unproven", "NotProbed"),
        ("auto", None, "a", True, False, "Unproven", "NotProbed"),
        ("auto", None, "ab", True, True, "Proven", "DialledBack"),
        ("auto", None, "AB", True, False, "Unreachable", "Unreachable"),
        # Forced one way or the other.
        ("on", None, "AB", True, True, "Forced", "Unreachable"),
        ("off", None, "ab", True, False, "Disabled", "NotProbed"),
        ("off", [IP], "ab", True, False, "Disabled", "NotProbed"),
    ],
)
def test_role(
    mode: str, addresses: list[str] | None, dials: str, own: bool, active: bool, condition: str, reachable: str
) -> None:
    decided = decide(mode, addresses, reached(dials), own=own)
    assert (decided.active, decided.condition, decided.reachable.reason) == (active, condition, reachable)
    assert decided.configured is (addresses is not None) and decided.capable is active
    assert [it.type for it in decided.conditions] == ["RelayCapable", "Reachable"]
    assert all(it.message for it in decided.conditions)


def test_an_earned_role_needs_uptime_and_throughput() -> None:
    young = decide("auto", None, reached("ab"), uptime=MIN_UPTIME / 2)
    assert (young.active, young.condition) == (False, "TooYoung")
    slow = decide("auto", None, reached("ab", throughput=MIN_THROUGHPUT - 1))
    assert (slow.active, slow.condition) == (False, "TooSlow") and "125 kB/s" in slow.reason
    # The best of the dials counts: a vantage's own link may be the slow one.
    assert decide("auto", None, reached("b", found=reached("a", throughput=1))).active
    # Whoever is named has not promised to be fast.
    assert decide("auto", [IP], reached("ab", throughput=1), uptime=0.0).active


def test_the_reason_names_address_vantage_and_outcome() -> None:
    named = decide("auto", [IP], reached("AB"))
    assert "r is named in relayNodes but stays ordinary" in named.reason
    assert f"{IP} cannot be reached (b: no answer)" in named.reason
    assert f"a, b got through to {IP}" in decide("auto", None, reached("ab")).reason
    assert IP in decide("auto", [IP], Reachability(), own=False).reason


# --- when --------------------------------------------------------------------------------------------------------------


def test_rounds_are_rare_when_all_is_said_and_ever_rarer_while_it_is_not() -> None:
    pace = Pace(3600, random.Random(1))
    assert [pace.pause(False) for _ in range(4)] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert all(3240 <= pace.pause(True) <= 3960 for _ in range(100))
    assert pace.pause(False) == FIRST
    assert [pace.pause(False) for _ in range(30)][-1] == 3600
    pace.hurry()
    assert pace.pause(False) == FIRST
    assert confidence.VANTAGES == 2
