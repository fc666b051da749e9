"""When each of several ways to a peer is tried."""

from services.tunnel import stagger
from services.tunnel.candidates import Candidate
from services.tunnel.core.link import DIRECT, RELAYED

PUBLIC = [Candidate(DIRECT, f"{ip}:1", ip, 1) for ip in ("9.9.9.9", "8.8.8.8")]
PRIVATE = [Candidate(DIRECT, f"{ip}:1", ip, 1) for ip in ("10.0.0.1", "10.0.0.2")]
RELAYS = [Candidate(RELAYED, name, relay=name) for name in ("r1", "r2")]
FULL = Candidate(RELAYED, "full", relay="full", full=True)


def times(*candidates: Candidate, urgent: bool) -> list[float]:
    return [delay for _, delay in stagger.delays(candidates, urgent=urgent)]


def test_addresses_come_one_after_the_other_and_relays_a_little_later() -> None:
    assert times(*PUBLIC, urgent=True) == [0.0, stagger.PUBLIC]
    assert times(*PRIVATE, urgent=True) == [0.0, stagger.PRIVATE]
    first, second = times(*PUBLIC, *RELAYS, urgent=True)[2:]
    assert (first, second) == (stagger.RELAY_HEADSTART, stagger.RELAY_HEADSTART + stagger.PRIVATE)
    assert times(*RELAYS, urgent=True)[0] == 0.0


def test_a_relay_over_its_limit_comes_after_those_with_room() -> None:
    full, other = times(FULL, RELAYS[0], urgent=True)
    assert full >= stagger.FULL_DELAY > other


def test_a_standby_is_not_urgent() -> None:
    first, second = times(*RELAYS, urgent=False)
    assert 0.0 <= first <= stagger.STANDBY_SMEAR
    assert second == first + stagger.STANDBY
