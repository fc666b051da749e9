"""A silence does not count as a long path, and a path that has become long does."""

import pytest

from services.tunnel.core.link import SUSPECT_FLOOR, RoundTrip
from tests.tunnel.harness import Net


def talking(delay: float) -> Net:
    net = Net()
    net.link(relay="r1", delay=delay)
    net.link(relay="r2", delay=delay)
    net.run(1.5)
    net.a.open()
    chat(net, 2.0)
    return net


def chat(net: Net, seconds: float, every: float = 0.05) -> None:
    """A request, and its answer, again and again."""
    end = net.now + seconds
    while net.now < end:
        for side in (net.a, net.b):
            for stream in list(side.session.streams.values()):
                side.session.send(stream, b"x" * 64)
        net.run(every)


@pytest.mark.parametrize("seconds", [0.5, 1.2, 5.0])
def test_a_relay_that_froze_is_doubted_as_soon_the_next_time(seconds: float) -> None:
    net = talking(0.02)
    for _ in range(10):
        number = net.a.session.active.id
        net.silence(number)
        chat(net, seconds)
        net.silence(number, False)
        chat(net, 3.0)
        for side in (net.a, net.b):
            for link in side.session.links:
                assert link.silence_allowed(flowing=False) == SUSPECT_FLOOR
                assert link.path_rtt.smoothed < 0.1


def test_a_path_that_has_become_slow_is_measured_anew() -> None:
    net = talking(0.02)
    for number in (1, 2):
        for wire in net.pipes[number][2:]:
            wire.delay = 0.4
    chat(net, 30.0)
    for side in (net.a, net.b):
        active = side.session.active
        assert 0.7 < active.path_rtt.smoothed < 1.0 and active.data_rtt.smoothed > 0.5
        assert active.suspect_since is None, "it is not doubted for ever"


def test_after_one_late_answer_the_next_is_waited_for_as_long() -> None:
    """A host is suddenly busy: it is not doubted again and again until the smoothed round trip has followed."""
    trip = RoundTrip()
    for _ in range(20):
        trip.sample(0.09)
    assert trip.overdue < SUSPECT_FLOOR
    trip.sample(0.29)
    assert trip.overdue > 0.29 + 0.02
    for _ in range(20):
        trip.sample(0.09)
    assert trip.overdue < SUSPECT_FLOOR, "and is not waited for when it is not busy any more"
