"""Credit: a quick reader is never slowed by it, slow ones cost bounded memory, however many."""

import random

import pytest

from services.tunnel.core.budget import Budget
from services.tunnel.core.frames import Reason
from services.tunnel.core.stream import INITIAL_WINDOW, MAX_WINDOW
from tests.tunnel.harness import Net


def net_with(limit: int) -> Net:
    net = Net(windows=Budget(limit))
    net.link(relay="r1", delay=0.02)
    net.run(1.5)
    return net


def pump(net: Net, streams: list, seconds: float) -> dict[int, int]:
    """Sends on all as much as is allowed; returns how much each got across."""
    before = {stream.id: len(net.b.got.get(stream.id, b"")) for stream in streams}
    limit = net.now + seconds
    while net.now < limit:
        for stream in streams:
            if not net.a.session.blocked:
                net.a.session.send(stream, bytes(1 << 20))
        net.run(0.005, tick=0.005)
    return {stream.id: len(net.b.got.get(stream.id, b"")) - before[stream.id] for stream in streams}


def test_a_quick_reader_soon_has_a_window_that_does_not_bound_it() -> None:
    net = net_with(64 << 20)
    stream = net.a.open()
    got = pump(net, [stream], 0.5)
    window = net.b.streams[stream.id].window
    assert window >= 4 << 20
    assert got[stream.id] > 20 * INITIAL_WINDOW, "it grew within a few round trips"


def test_a_slow_reader_keeps_a_small_window_and_a_former_quick_one_returns_it() -> None:
    net = net_with(64 << 20)
    stream = net.a.open()
    net.run(0.2)
    net.b.slow.add(stream.id)
    far = net.b.streams[stream.id]
    for _ in range(300):  # 16 KiB each 100 ms
        if not net.a.session.blocked:
            net.a.session.send(stream, bytes(1 << 20))
        net.run(0.1, tick=0.02)
        net.b.session.consumed(far, min(16 << 10, len(net.b.got[stream.id]) - far.consumed))
    assert far.window == INITIAL_WINDOW
    net.b.slow.discard(stream.id)
    net.b.session.consumed(far, len(net.b.got[stream.id]) - far.consumed)
    pump(net, [stream], 0.5)
    assert far.window >= 4 << 20
    net.b.slow.add(stream.id)
    for _ in range(300):
        net.b.session.consumed(far, min(64 << 10, len(net.b.got[stream.id]) - far.consumed))
        net.run(0.2, tick=0.02)
        net.a.session.send(stream, bytes(1 << 20))
    assert far.window == INITIAL_WINDOW and net.b.session._windows.used == 0


@pytest.mark.slow
def test_many_readers_that_stop_cost_what_the_budget_allows() -> None:
    limit = 8 << 20
    net = net_with(limit)
    streams = [net.a.open() for _ in range(60)]
    dice = random.Random(1)
    for _ in range(20):
        pump(net, streams, 0.05)
        for stream in dice.sample(streams, 5):
            net.b.slow.add(stream.id)
    net.b.slow.update(stream.id for stream in streams)
    pump(net, streams, 0.5)
    waiting = sum(len(net.b.got[stream.id]) - net.b.streams[stream.id].consumed for stream in streams)
    assert waiting <= limit + len(streams) * INITIAL_WINDOW
    assert net.b.session._windows.used <= limit
    assert max(net.b.streams[stream.id].window for stream in streams) <= MAX_WINDOW
    # One more stream is served, although all the budget is taken.
    quick = net.a.open()
    assert pump(net, [quick], 1.0)[quick.id] > 10 * INITIAL_WINDOW


def test_what_a_stream_had_is_free_when_it_ends() -> None:
    net = net_with(64 << 20)
    for how in ("finish", "reset here", "reset there"):
        stream = net.a.open()
        pump(net, [stream], 0.5)
        assert net.b.session._windows.used > 0
        if how == "finish":
            net.a.session.finish(stream)
            net.b.session.finish(net.b.streams[stream.id])
        else:
            end = net.a if how == "reset there" else net.b
            end.session.reset(end.streams[stream.id], Reason())
        net.run(3.0)
        assert net.b.session._windows.used == 0 and net.a.session._windows.used == 0, how
    stream = net.a.open()
    pump(net, [stream], 0.5)
    net.b.session.discard()
    assert net.b.session._windows.used == 0
