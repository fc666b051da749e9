"""What a session lacks, and how long that is left alone. Pure core."""

import pytest

from services.tunnel.core.gaps import (
    ANY,
    AT_ONCE,
    BETTER,
    CONFIRM_PATIENCE,
    DOUBT_PATIENCE,
    RESPONDER_PATIENCE,
    SILENCE_PATIENCE,
    STANDBY,
    among,
    left,
    patience,
)
from services.tunnel.core.link import DIRECT, PUNCHED, RELAYED, Link
from tests.tunnel.harness import PlainCipher


def link(*, confirmed: bool) -> Link:
    made = Link(1, RELAYED, PlainCipher(), 0.0, relay="r1")
    made.confirmed = confirmed
    return made


@pytest.mark.parametrize(("initiator", "usual"), [(True, 0.0), (False, RESPONDER_PATIENCE[ANY])])
def test_a_link_that_was_just_joined_is_given_time_before_another_is_looked_for(initiator: bool, usual: float) -> None:
    """The round trip until the peer confirms it once cost a relay a circuit that was cancelled at once."""
    joined = link(confirmed=False)
    assert among([joined], None) == {ANY}
    assert patience(ANY, [joined], initiator=initiator) == usual + CONFIRM_PATIENCE
    many = [link(confirmed=False) for _ in range(8)]
    assert patience(ANY, many, initiator=initiator) == usual + CONFIRM_PATIENCE, "not more for more of them"
    assert patience(ANY, [], initiator=initiator) == usual
    joined.closing = True
    assert patience(ANY, [joined], initiator=initiator) == usual


def test_what_a_confirmed_link_leaves_open_is_not_kept_waiting() -> None:
    links = [link(confirmed=True), link(confirmed=False)]
    assert among(links, links[0]) == {BETTER, STANDBY}
    assert patience(BETTER, links, initiator=True) == patience(STANDBY, links, initiator=True) == 0.0


def doubted(kind: int, relay: str = "", since: float = 100.0) -> Link:
    made = Link(1, kind, PlainCipher(), 0.0, relay=relay)
    made.confirmed = True
    made.suspect_since = since
    return made


def test_two_ways_that_fall_silent_at_once_are_given_time() -> None:
    """Perhaps it is this host that is too busy to hear."""
    links = [doubted(RELAYED, "r1"), doubted(RELAYED, "r2", 100.4)]
    assert patience(ANY, links, initiator=True) == DOUBT_PATIENCE
    links[1].suspect_since, links[1].distrusted = None, True
    assert patience(ANY, links, initiator=True) == DOUBT_PATIENCE, "the peer says so"


def test_links_of_one_way_are_no_two_ways() -> None:
    """A direct path that is lost takes the punched link along: another one is looked for at once."""
    assert patience(ANY, [doubted(DIRECT), doubted(PUNCHED)], initiator=True) == 0.0
    assert patience(ANY, [doubted(RELAYED, "r1"), doubted(RELAYED, "r1")], initiator=True) == 0.0


def test_what_fell_silent_before_says_nothing_of_now() -> None:
    """It stays in the list for 10 s, until it counts as dead."""
    links = [doubted(RELAYED, "r1", 100.0), doubted(RELAYED, "r2", 100.0 + AT_ONCE)]
    assert patience(ANY, links, initiator=True) == 0.0


def test_who_did_not_begin_the_session_does_not_wait_long_when_only_it_may_have_noticed() -> None:
    """The initiator, which says nothing, notices nothing."""
    assert patience(ANY, [doubted(DIRECT)], initiator=False) == SILENCE_PATIENCE
    assert patience(ANY, [], initiator=False) == RESPONDER_PATIENCE[ANY]


def test_an_idle_link_by_the_way_that_fell_silent_is_no_help() -> None:
    """It would be doubted itself, a second later, and a relay looked for only then."""
    active, older = doubted(DIRECT), link(confirmed=True)
    older.kind, older.relay = PUNCHED, ""
    links = [active, older]
    assert among(links, active) == {ANY}
    assert ANY in left(links, active)
    older.progress = 100.1
    assert ANY not in among(links, active) | left(links, active), "it has answered since"
    older.progress, older.relay = 0.0, "r1"
    assert ANY not in among(links, active) | left(links, active), "another way"
