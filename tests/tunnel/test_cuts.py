"""A session that is cut after every single record, and goes on over a new link each time."""

import pytest

from services.tunnel.core import events
from services.tunnel.core.packets import RECORD
from tests.tunnel.harness import Net

DATA = bytes(range(256)) * 1500


def talk(cut_after: int, *, learn_late: bool, standby: bool) -> tuple[Net, int]:
    """Both ends send while links die after each `cut_after` records that came through; returns the cuts, too."""
    net = Net()
    relays = 0

    def fresh() -> int:
        nonlocal relays
        relays += 1
        return net.link(relay=f"r{relays}", delay=0.01)

    fresh()
    if standby:
        fresh()
    net.run(0.3)
    stream = net.a.open()
    back = None
    sent, returned, cuts, came = 0, 0, 0, 0
    while len(net.b.got.get(1, b"")) < len(DATA) or len(net.a.got.get(1, b"")) < len(DATA) // 2:
        assert net.now < 1200, (sent, returned, cuts)
        sent += net.a.session.send(stream, DATA[sent : sent + 4000])
        back = net.b.streams.get(1)
        if back is not None and returned < len(DATA) // 2:
            returned += net.b.session.send(back, DATA[returned : min(returned + 2000, len(DATA) // 2)])
        net.step()
        wires = [wire for pipe in net.pipes.values() for wire in pipe[2:]]
        before = sum(packet[0] == RECORD for wire in wires for _, packet in wire.queue)
        net.run(0.005, tick=0.005)
        after = sum(packet[0] == RECORD for wire in wires for _, packet in wire.queue)
        came += max(before - after, 0)
        if came >= cut_after and net.a.session.active is not None:
            came = 0
            cuts += 1
            number = net.a.session.active.owner
            if learn_late:
                net.part(number, net.a if cuts % 2 else net.b, 0.015)
            else:
                net.cut(number)
            fresh()
    return net, cuts


@pytest.mark.parametrize("cut_after", [1, 2, 3])
@pytest.mark.parametrize("learn_late", [False, True])
@pytest.mark.parametrize("standby", [False, True])
def test_nothing_is_lost_repeated_or_reordered(cut_after: int, learn_late: bool, standby: bool) -> None:
    net, cuts = talk(cut_after, learn_late=learn_late, standby=standby)
    assert cuts >= 10
    assert bytes(net.b.got[1]) == DATA
    assert bytes(net.a.got[1]) == DATA[: len(DATA) // 2]
    assert not {events.RESET, events.ENDED} & set(net.a.kinds() + net.b.kinds())
    net.run(3.0)
    for end in (net.a, net.b):
        assert end.session.outbox.memory == 0 and not end.session.inbox._held
