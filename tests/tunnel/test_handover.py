"""A better path comes under bulk, and its TCP is cold: the former path carries on what the new one cannot take yet."""

import pytest

from services.tunnel.core import events
from services.tunnel.core.gaps import BETTER, among
from services.tunnel.core.handover import LASTS
from services.tunnel.core.link import DIRECT, PUNCHED, RELAYED, STALE_FOR
from tests.tunnel.harness import Net

TICK = 0.002
FIRST_WINDOW = 10  # segments (RFC 6928)
RATE = 20e6  # bytes per second that the relay carries


class Bulk:
    """As much as the relay carries, and how it arrives."""

    def __init__(self, net: Net, rate: float = RATE) -> None:
        self.net = net
        self.rate = rate
        self.stream = net.a.open()
        self.sent = 0
        self.longest = 0.0
        """Seconds in which nothing arrived."""
        self._last = net.now

    def run(self, seconds: float) -> None:
        net = self.net
        end = net.now + seconds
        while net.now < end:
            if not net.a.session.blocked:
                self.sent += net.a.session.send(self.stream, bytes(int(self.rate * TICK)))
            before = len(self.got)
            net.run(TICK, tick=TICK)
            if len(self.got) > before:
                self.longest = max(self.longest, net.now - self._last)
                self._last = net.now

    @property
    def got(self) -> bytearray:
        return self.net.b.got.get(self.stream.id, bytearray())


def relayed() -> tuple[Net, Bulk]:
    net = Net()
    net.link(relay="r1", delay=0.02, rate=RATE)
    net.run(1.5)
    bulk = Bulk(net)
    bulk.run(2.0)
    bulk.longest = 0.0
    return net, bulk


def kind(net: Net) -> int:
    active = net.a.session.active
    assert active is not None
    return active.kind


def test_bulk_has_no_longer_silence_for_going_over_to_a_cold_path() -> None:
    net, bulk = relayed()
    net.link(kind=DIRECT, relay="", delay=0.03, window=FIRST_WINDOW)
    bulk.run(0.1)
    assert kind(net) == DIRECT, "at once"
    sent = bulk.sent
    bulk.run(0.5)
    assert bulk.sent - sent > 0.4 * RATE, "nothing was slower for it"
    bulk.run(LASTS[0])
    assert net.a.session.handover is None, "it is over"
    bulk.run(0.5)
    assert bulk.longest < 0.045, "a cold path by itself has a burst in each round trip of 60 ms"
    net.run(2.0)
    assert len(bulk.got) == bulk.sent > RATE


def test_a_second_better_path_comes_at_the_same_moment() -> None:
    """A punched and a direct one: the relayed one is what carries most until the last of them is warm."""
    net, bulk = relayed()
    net.link(kind=PUNCHED, relay="", delay=0.03, window=FIRST_WINDOW)
    bulk.run(0.1)
    assert kind(net) == PUNCHED
    net.link(kind=DIRECT, relay="", delay=0.03, window=FIRST_WINDOW)
    bulk.run(0.1)
    assert kind(net) == DIRECT
    assert net.a.session.handover is not None and net.a.session.handover.old.kind == RELAYED
    bulk.run(2 * LASTS[0])
    assert bulk.longest < 0.045
    net.run(2.0)
    assert len(bulk.got) == bulk.sent


def test_a_link_that_is_replaced_goes_when_the_new_one_is_warm() -> None:
    net, bulk = relayed()
    old = net.a.session.active
    assert old is not None
    number = net.link(relay="r1", delay=0.02, window=FIRST_WINDOW)
    bulk.run(0.1)
    new = net.pipes[number][0]
    net.a.apply(net.a.session.replace(old, new, net.now))
    bulk.run(LASTS[0] / 2)
    assert net.a.session.active is new and not old.closing and old.unheard
    bulk.run(LASTS[0])
    assert net.a.session.links == [new] and bulk.longest < 0.045
    net.run(2.0)
    assert len(bulk.got) == bulk.sent


def test_without_bulk_there_is_none() -> None:
    net = Net()
    net.link(relay="r1")
    net.run(1.5)
    stream = net.a.open()
    net.a.session.send(stream, b"request")
    net.run(0.3)
    net.link(kind=DIRECT, relay="", delay=0.01, window=FIRST_WINDOW)
    net.run(0.05)
    assert kind(net) == DIRECT and net.a.session.handover is None


def test_the_former_path_dies_meanwhile() -> None:
    net, bulk = relayed()
    new = net.link(kind=DIRECT, relay="", delay=0.03, window=FIRST_WINDOW)
    bulk.run(0.1)
    net.relay_dies("r1")
    bulk.run(0.5)
    assert kind(net) == DIRECT and net.a.session.handover is None
    assert new in net.pipes
    net.run(3.0)
    assert len(bulk.got) == bulk.sent


def test_the_former_path_falls_silent_meanwhile() -> None:
    net, bulk = relayed()
    net.link(kind=DIRECT, relay="", delay=0.03, window=FIRST_WINDOW)
    bulk.run(0.1)
    net.silence(next(number for number, (link, *_) in net.pipes.items() if link.kind == RELAYED))
    bulk.run(1.5)
    assert kind(net) == DIRECT and net.a.session.handover is None
    assert bulk.longest < 0.6, "as soon as it is doubted the new path gets all of it"
    net.run(3.0)
    assert len(bulk.got) == bulk.sent


def test_the_new_path_dies_meanwhile() -> None:
    net, bulk = relayed()
    new = net.link(kind=DIRECT, relay="", delay=0.03, window=FIRST_WINDOW)
    bulk.run(0.1)
    net.cut(new)
    bulk.run(2.0)
    assert kind(net) == RELAYED and net.a.session.handover is None
    assert events.SUSPECTED not in net.a.kinds()
    net.run(3.0)
    assert len(bulk.got) == bulk.sent


def test_a_slower_path_takes_over_all_the_same() -> None:
    """A direct path comes before a relayed one, also when it is slower: it is no burden to others."""
    net, bulk = relayed()
    net.link(kind=DIRECT, relay="", delay=0.01, rate=2e6)
    bulk.run(LASTS[0] / 2)
    old = next(link for link in net.a.session.links if link.kind == RELAYED)
    assert kind(net) == DIRECT and old.unheard
    bulk.run(2 * LASTS[0])
    assert not old.unheard
    net.run(4.0)
    assert len(bulk.got) == bulk.sent


@pytest.mark.parametrize("fresh", [True, False])
def test_a_direct_path_that_comes_back_is_used_by_a_fresh_link_or_not_before_long(fresh: bool) -> None:
    """FAILURES 24: what is new would wait behind what it had under way."""
    net = Net()
    direct = net.link(kind=DIRECT, relay="", delay=0.02, rate=RATE / 100)
    net.run(1.5)
    bulk = Bulk(net)
    bulk.run(2.0)
    net.silence(direct)
    bulk.run(1.0)
    net.link(relay="r1", delay=0.02, rate=RATE)
    bulk.run(2.0)
    assert kind(net) == RELAYED
    link = net.pipes[direct][0]
    stale = link.heard_out + len(link.inflight)
    net.silence(direct, silent=False)
    while not link.stale_since:
        bulk.run(0.02)
    assert among(net.a.session.links, net.a.session.active) >= {BETTER}
    began = net.now
    if fresh:
        net.link(kind=DIRECT, relay="", delay=0.02, rate=RATE)
    while kind(net) == RELAYED:
        bulk.run(0.02)
        assert net.now - began < STALE_FOR + 2.0
    assert (net.a.session.active is link) != fresh
    assert fresh or link.heard_out >= stale, "nothing waits before what is new"
    bulk.run(STALE_FOR + 2.0 if fresh else 0.1)
    assert direct not in net.pipes or not fresh, "nobody needs the old one"
    net.run(15.0)
    assert len(bulk.got) == bulk.sent


def test_what_was_lost_with_a_relay_goes_to_the_cold_standby_before_what_has_probably_arrived() -> None:
    """All of it in its order would be three flights, the first two of which bring nothing new."""
    net = Net()
    net.link(relay="r1", delay=0.02)
    net.link(relay="r2", delay=0.025, window=FIRST_WINDOW)
    net.run(1.5)
    bulk = Bulk(net, rate=2e6)
    bulk.run(2.0)
    bulk.longest = 0.0
    net.relay_dies("r1")
    bulk.run(1.0)
    net.run(2.0)
    assert len(bulk.got) == bulk.sent
    assert bulk.longest < 0.06, "one flight of a cold path, not three"


@pytest.mark.parametrize("far", [True, False])
def test_the_tcp_of_a_cold_standby_never_waits_for_what_was_lost_with_a_relay(far: bool) -> None:
    """Its window grows as fast as it can, whatever the size of the records and the round trip of the TCP, which over a relay is
    shorter than the path's: half of it, or less."""
    net = Net()
    net.link(relay="r1", delay=0.02)
    standby = net.link(relay="r2", delay=0.02, window=FIRST_WINDOW)
    wire = net.pipes[standby][2]
    wire.round_trip = 0.04 if far else 0.01
    net.run(1.5)
    bulk = Bulk(net, rate=60e6)
    bulk.run(2.0)
    link = net.a.session.active
    assert link is not None and link.record_size > 200_000, "none of them would fit into a cold window"
    net.relay_dies("r1")
    ticks = 0
    while any(not record.presumed for record in net.a.session.outbox._orphans):
        assert not ticks or wire.unsent or len(wire.unheard) >= wire.window
        bulk.run(TICK)
        ticks += 1
    assert ticks > (50 if far else 10)
    net.run(3.0)
    assert len(bulk.got) == bulk.sent


def test_datagrams_do_not_wait_behind_what_a_cold_standby_cannot_take_yet() -> None:
    """The relay of bulk is lost: what TCP has taken already is in front of everything."""
    net = Net()
    net.link(relay="r1", delay=0.02)
    net.link(relay="r2", delay=0.025, window=FIRST_WINDOW)
    net.run(1.5)
    bulk, flow = Bulk(net, rate=8e6), net.a.open_udp()
    bulk.run(2.0)
    net.relay_dies("r1")
    sent, longest = 0, 0.0
    last, began = net.now, net.now
    while net.now - began < 0.6:
        net.a.session.send_datagram(flow, b"now")
        sent += 1
        before = len(net.b.datagrams.get(flow.id, ()))
        bulk.run(TICK)
        if len(net.b.datagrams.get(flow.id, ())) > before:
            longest, last = max(longest, net.now - last), net.now
    assert longest < 0.06
    net.run(3.0)
    assert len(bulk.got) == bulk.sent
    assert len(net.b.datagrams[flow.id]) == sent
