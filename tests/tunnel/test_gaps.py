"""What a session lacks, and how long that is left alone. Pure core."""

import pytest

from services.tunnel.core.gaps import ANY, BETTER, CONFIRM_PATIENCE, RESPONDER_PATIENCE, STANDBY, among, patience
from services.tunnel.core.link import RELAYED, Link
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
