"""The session core under fake time."""

from services.tunnel.core import events
from services.tunnel.core.frames import Reason
from services.tunnel.core.link import DIRECT
from services.tunnel.core.packets import MAX_PLAIN
from services.tunnel.core.session import GATHER_KEPT
from tests.tunnel.harness import Net


def payload(size: int, salt: int = 0) -> bytes:
    return bytes((i * 7 + salt) & 0xFF for i in range(251)) * (size // 251 + 1)


def established(**links) -> Net:
    net = Net()
    net.link(relay="r1", **links)
    net.link(relay="r2", delay=0.03)
    net.run(0.5)
    return net


def send_all(net: Net, end, stream, data: bytes, seconds: float = 60.0) -> None:
    sent = 0
    limit = net.now + seconds
    while sent < len(data) and net.now < limit:
        if not end.session.blocked:
            sent += end.session.send(stream, data[sent : sent + 100_000])
        net.run(0.01)
    assert sent == len(data)


def test_data_goes_both_ways_and_half_closes() -> None:
    net = established()
    stream = net.a.open()
    data = payload(3_000_000)
    send_all(net, net.a, stream, data)
    net.a.session.finish(stream)
    net.run(0.2)
    assert bytes(net.b.got[1]) == data and 1 in net.b.finished
    back = payload(100_000, 3)
    send_all(net, net.b, net.b.streams[1], back)
    net.b.session.finish(net.b.streams[1])
    net.run(0.2)
    assert bytes(net.a.got[1]) == back and 1 in net.a.finished
    assert not net.a.session.streams and not net.b.session.streams


def test_prefers_the_lower_round_trip_and_keeps_a_standby_on_another_relay() -> None:
    net = established()
    assert net.a.session.active.relay == "r1" and len(net.a.session.links) == 2


def test_a_reset_relay_loses_nothing() -> None:
    """FAILURES 1: the relay in use dies; the standby over another one carries on in the same moment."""
    net = established()
    stream = net.a.open()
    data = payload(6_000_000)
    half = len(data) // 2
    send_all(net, net.a, stream, data[:half])
    net.relay_dies("r1")
    assert net.a.session.active.relay == "r2"
    send_all(net, net.a, stream, data[half:])
    net.run(1)
    assert bytes(net.b.got[1]) == data
    assert any(kind == events.STALLED for kind in net.a.kinds())


def test_a_silent_relay_is_noticed_in_three_round_trips_and_loses_nothing() -> None:
    net = established()
    stream = net.a.open()
    send_all(net, net.a, stream, payload(500_000))
    net.silence(1)
    began = net.now
    net.a.session.send(stream, b"request")
    while not bytes(net.b.got[1]).endswith(b"request"):
        net.run(0.01)
        assert net.now - began < 0.5
    net.b.session.send(net.b.streams[1], b"answer")
    while 1 not in net.a.got:
        net.run(0.01)
        assert net.now - began < 0.6, "the peer's own doubt must not add up"
    net.run(0.1)
    assert net.a.session.active.relay == "r2" and net.b.session.active.relay == "r2"


def test_one_way_loss_is_noticed_although_the_other_way_brings_data() -> None:
    """FAILURES 6: what comes in says nothing of what goes out."""
    net = established()
    stream = net.a.open()
    net.a.session.send(stream, b"hello")
    net.run(0.3)
    net.silence(1, ways=(True, False))  # a -> b vanishes, b -> a arrives
    for _ in range(20):
        net.a.session.send(stream, b"x")
        net.b.session.send(net.b.streams[1], b"y")
        net.run(0.1)
    assert bytes(net.b.got[1]) == b"hello" + b"x" * 20
    assert bytes(net.a.got[1]) == b"y" * 20


def test_all_links_gone_and_one_back() -> None:
    net = established()
    stream = net.a.open()
    net.relay_dies("r1")
    net.relay_dies("r2")
    net.a.session.send(stream, b"while nobody listens")
    net.run(10)
    assert net.a.session.linkless_since is not None
    net.link(relay="r2")
    net.run(0.5)
    assert bytes(net.b.got[1]) == b"while nobody listens"
    assert net.a.session.linkless_since is None


def test_upgrade_to_direct_is_seamless_and_retires_the_relays() -> None:
    net = established()
    stream = net.a.open()
    data = payload(8_000_000)
    send_all(net, net.a, stream, data[:2_000_000])
    net.link(kind=DIRECT, relay="", delay=0.005)
    send_all(net, net.a, stream, data[2_000_000:])
    net.run(8)
    assert bytes(net.b.got[1]) == data
    assert [link.kind for link in net.a.session.links] == [DIRECT]
    assert [link.kind for link in net.b.session.links] == [DIRECT]
    assert not net.a.session.resent


def test_equal_paths_do_not_flap() -> None:
    """FAILURES 9: two relays whose round trips differ by an eighth, now this way, now that."""
    net = Net()
    net.link(relay="r1", delay=0.1)
    net.link(relay="r2", delay=0.1)
    net.run(1)
    before = net.a.session.switches
    for _ in range(600):
        for _, _, to_b, _ in net.pipes.values():
            to_b.delay = 0.1 + net.random.choice((0.0, 0.02))
        net.run(1, tick=0.02)
    assert net.a.session.switches == before


def test_reset_reaches_the_other_side_with_its_reason() -> None:
    net = established()
    stream = net.a.open()
    net.run(0.2)
    net.b.session.reset(net.b.streams[stream.id], Reason(1, "not allowed"))
    net.run(0.2)
    assert (events.RESET, stream.id, Reason(1, "not allowed")) in net.a.seen
    assert not net.a.session.streams and not net.b.session.streams


def test_a_slow_reader_stops_only_its_own_stream() -> None:
    net = established()
    slow, quick = net.a.open(), net.a.open()
    net.run(0.2)
    net.b.slow.add(slow.id)
    data = payload(5_000_000)
    sent = net.a.session.send(slow, data)
    assert sent < len(data) and slow.credit == 0
    net.run(1)
    send_all(net, net.a, quick, data)
    net.run(1)
    assert bytes(net.b.got[quick.id]) == data
    assert len(net.b.got[slow.id]) == sent
    net.b.session.consumed(net.b.streams[slow.id], sent)
    net.run(0.2)
    assert slow.credit > 0 and (events.CREDIT, slow.id, None) in net.a.seen


def test_the_first_datagram_does_not_overtake_the_opening_of_its_flow() -> None:
    net = established()
    flow = net.a.open_udp()
    net.a.session.send_datagram(flow, b"first")
    net.run(0.2)
    assert net.b.datagrams[flow.id] == [b"first"]


def test_datagrams_keep_their_borders_and_come_once() -> None:
    net = established()
    flow = net.a.open_udp()
    net.run(0.2)
    sent = [payload(size)[:size] for size in (0, 1, 9, 1200, 60_000)]
    for datagram in sent:
        net.a.session.send_datagram(flow, datagram)
    net.run(0.2)
    assert net.b.datagrams[flow.id] == sent
    net.silence(1)
    net.run(0.5)
    for number in range(50):
        net.a.session.send_datagram(flow, b"%d" % number)
        net.run(0.02)
    net.silence(1, silent=False)
    net.run(3)
    later = net.b.datagrams[flow.id][len(sent) :]
    assert len(later) == len(set(later)), "none comes twice although both links carried it"
    assert later[-1] == b"49"


def test_a_session_that_sends_nothing_gives_its_buffer_back() -> None:
    net = established()
    taken, given = [], []
    take, give = net.a.session._buffers.take, net.a.session._buffers.give
    net.a.session._buffers.take = lambda size: taken.append(take(size)) or taken[-1]  # type: ignore[method-assign]
    net.a.session._buffers.give = lambda buffer: given.append(id(buffer)) or give(buffer)  # type: ignore[method-assign]
    stream = net.a.open()
    for _ in range(20):
        send_all(net, net.a, stream, b"a small record")
    gathering = [buffer for buffer in taken if len(buffer) == MAX_PLAIN]
    assert len(gathering) == 1, "one buffer serves all records"
    net.run(2 * GATHER_KEPT)
    assert id(gathering[0]) in given
    send_all(net, net.a, stream, b"and on it goes")
    net.run(0.2)
    assert bytes(net.b.got[1]) == 20 * b"a small record" + b"and on it goes"
