"""Records that were under way on a path that is not the active one any more when it falls silent."""

import pytest

from services.tunnel.core.link import DEAD_AFTER, RELAYED
from tests.tunnel.harness import End, Net


def switched_with_data_under_way(delay: float) -> tuple[Net, End, bytes]:
    """a has sent on link 1 (slow), then a better link 2 became active; what was on link 1 is still there."""
    net = Net()
    net.link(relay="r1", delay=delay)
    net.run(1.5)
    stream = net.a.open()
    net.a.session.send(stream, b"opens")
    net.run(1.0)
    data = bytes(range(256)) * 900  # fits the first window
    net.a.session.send(stream, data)
    net.step()  # on its way over link 1
    net.silence(1)
    net.link(relay="r2", delay=delay / 10)
    return net, net.b, b"opens" + data


@pytest.mark.parametrize("delay", [0.05, 0.2])
def test_they_go_over_the_active_path_as_soon_as_the_former_is_suspect(delay: float) -> None:
    net, end, expected = switched_with_data_under_way(delay)
    began = net.now
    while bytes(end.got.get(1, b"")) != expected:
        net.run(0.01)
        assert net.now - began < DEAD_AFTER / 4, "waits until the silent link is given up"
    net.run(delay * 3)
    assert net.a.session.active is not None and net.a.session.active.relay == "r2"


def test_both_paths_doubted_and_a_third_comes() -> None:
    """What two silent links carry is not taken for safe because it is on two."""
    net = Net()
    for relay in ("r1", "r2"):
        net.link(relay=relay, delay=0.02)
    net.run(1.0)
    stream = net.a.open()
    net.a.session.send(stream, b"opens")
    net.run(1.0)
    net.silence(1)
    net.silence(2)
    net.a.session.send(stream, b"request")
    net.run(2.0)  # both are suspect, and the request is on both
    began = net.now
    net.link(relay="r3", delay=0.02, kind=RELAYED)
    while not bytes(net.b.got[1]).endswith(b"request"):
        net.run(0.01)
        assert net.now - began < DEAD_AFTER / 4, "waits until the silent links are given up"
