"""A relay, or anybody between the nodes, who removes, repeats or spoils packets delays a session and nothing more."""

import pytest

from services.tunnel.core import events
from services.tunnel.core.packets import RECORD
from tests.tunnel.harness import Net, Wire


def under_way(net: Net, number: int) -> tuple[Wire, list[int]]:
    """The wire from a to b, and where in its queue the records are."""
    wire = net.pipes[number][2]
    return wire, [at for at, (_, packet) in enumerate(wire.queue) if packet[0] == RECORD]


@pytest.mark.parametrize("standby", [False, True])
@pytest.mark.parametrize("which", [0, 2, -1])
@pytest.mark.parametrize("how", ["remove", "repeat", "spoil", "cut off"])
def test_all_arrives_all_the_same(how: str, which: int, standby: bool) -> None:
    net = Net()
    net.link(relay="r1")
    if standby:
        net.link(relay="r2", delay=0.03)
    net.run(2.0)
    stream = net.a.open()
    data = bytes(range(256)) * 400
    assert net.a.session.send(stream, data) == len(data)
    net.step()
    wire, records = under_way(net, 1)
    assert len(records) > 3
    when, packet = wire.queue[records[which]]
    if how == "remove":
        del wire.queue[records[which]]
    elif how == "repeat":
        wire.queue.insert(records[which], (when, packet))
    elif how == "spoil":
        wire.queue[records[which]] = when, packet[:-1] + bytes([packet[-1] ^ 1])
    else:
        while len(wire.queue) > records[which]:
            wire.queue.pop()
    net.run(0.5)
    net.a.session.send(stream, b"more")
    for _ in range(20):
        net.run(1.0)
        if not net.pipes:
            net.link(relay="r1")
    assert bytes(net.b.got[1]) == data + b"more"
    assert not any(kind in (events.RESET, events.ENDED) for kind in net.a.kinds() + net.b.kinds())
    assert net.a.session.outbox.memory == 0
