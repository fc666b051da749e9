"""Which link is used, doubted, left and closed, under fake time."""

import pytest

from services.tunnel.core import events, paths
from services.tunnel.core.carrier import CLOSE_AFTER, CONFIRM_WITHIN, STANDBY_KEPT, SURPLUS_AFTER
from services.tunnel.core.link import DEAD_AFTER, DIRECT, PUNCHED, RELAYED, SUSPECT_CEILING, Link
from tests.tunnel.harness import End, Net, PlainCipher


def two_relays(**options: float) -> Net:
    net = Net()
    net.link(relay="r1", **options)
    net.link(relay="r2", **{**options, "delay": options.get("delay", 0.02) + 0.002})
    net.run(1.5)
    return net


class Chatter:
    """A stream on which both sides say something now and then; knows what should have come."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.stream = net.a.open()
        net.run(0.2)
        self.said = {"a": bytearray(), "b": bytearray()}
        self._number = 0

    def talk(self, seconds: float, pause: float = 0.1) -> None:
        limit = self.net.now + seconds
        while self.net.now < limit:
            for end, stream in ((self.net.a, self.stream), (self.net.b, self.net.b.streams[self.stream.id])):
                self._number += 1
                text = b"%d," % self._number
                end.session.send(stream, text)
                self.said[end.name] += text
            self.net.run(pause)

    def check(self) -> None:
        """All came, once and in order, and nothing was reset."""
        assert self.net.b.got.get(self.stream.id, b"") == self.said["a"]
        assert self.net.a.got.get(self.stream.id, b"") == self.said["b"]
        assert not {events.RESET, events.ENDED} & set(self.net.a.kinds() + self.net.b.kinds())


def relays_of(end: End) -> set[str]:
    return {link.relay for link in end.session.links if not link.closing}


def active(end: End) -> str:
    assert end.session.active is not None
    return end.session.active.relay or "direct"


# ---------------------------------------------------------------- no flapping


@pytest.mark.slow
def test_two_paths_within_a_fifth_do_not_flap_in_ten_minutes() -> None:
    """FAILURES 9: two relays of almost equal latency; now the one is nearer, now the other."""
    net = two_relays(delay=0.1)
    talk = Chatter(net)
    before = net.a.session.switches, net.b.session.switches
    for _ in range(300):
        for _, _, to_b, to_a in net.pipes.values():
            # In steps of the world's clock: what is less it would not see.
            to_b.delay = 0.1 + net.random.choice((0.0, 0.01, 0.02))
            to_a.delay = 0.1 + net.random.choice((0.0, 0.01, 0.02))
        talk.talk(2.0, pause=0.5)
    talk.net.run(1.0)
    talk.check()
    assert (net.a.session.switches, net.b.session.switches) == before


def test_less_than_five_milliseconds_are_no_reason_to_switch() -> None:
    """FAILURES 9: however short the way; and each of both is the nearer one in turn."""
    net = Net()
    links = [Link(number, RELAYED, PlainCipher(), net.now, relay=f"r{number}") for number in (1, 2)]
    nearer = [0, 0]
    chosen = None
    for _ in range(600):
        net.now += 1.0
        for link in links:
            link.confirmed = True
            link.path_rtt.sample(0.004 + net.random.random() * 0.0049)
        nearer[links[0].rtt > links[1].rtt] += 1
        before, chosen = chosen, paths.choose(links, chosen, net.now)
        assert before in (None, chosen)
    assert min(nearer) > 100
    assert chosen is not None
    links[chosen is links[0]].path_rtt.smoothed = chosen.rtt - 0.006
    assert paths.choose(links, chosen, net.now) is not chosen, "six are one"


def test_bulk_does_not_drive_the_session_from_relay_to_relay() -> None:
    """FAILURES 9: its own queue makes the active path look worse than the idle standby, which is no nearer at all."""
    net = two_relays(rate=1_000_000)
    stream = net.a.open()
    net.run(0.3)
    before = net.a.session.switches, net.b.session.switches
    sent = 0
    for _ in range(3000):
        if not net.a.session.blocked:
            sent += net.a.session.send(stream, bytes(60_000))
        net.run(0.02, tick=0.02)
    net.run(3.0)
    assert len(net.b.got[1]) == sent > 40_000_000
    assert (net.a.session.switches, net.b.session.switches) == before
    assert not any(kind == events.SUSPECTED for kind in net.a.kinds() + net.b.kinds())


def test_probes_that_wait_behind_bulk_for_seconds_do_not_make_it_dead() -> None:
    """FAILURES 24: the path gets ten times slower under a full queue. Probes and the oldest records now take longer
    than any silence that is allowed, while something is heard all the time."""
    net = two_relays(rate=1_000_000)
    stream = net.a.open()
    net.run(0.3)
    sent, slowest = 0, 0.0
    before = net.a.session.switches, net.b.session.switches
    for step in range(1500):
        if step == 100:
            for _, _, to_b, to_a in net.pipes.values():
                to_b.rate = to_a.rate = 100_000
        if not net.a.session.blocked:
            sent += net.a.session.send(stream, bytes(60_000))
        net.run(0.02, tick=0.02)
        active = net.a.session.active
        assert active is not None
        slowest = max(slowest, net.now - (active.inflight[0][1] if active.inflight else net.now))
    net.run(30.0, tick=0.02)
    assert len(net.b.got[1]) == sent
    assert slowest > SUSPECT_CEILING, "the queue was not long enough to show anything"
    assert not any(kind == events.SUSPECTED for kind in net.a.kinds() + net.b.kinds())
    assert (net.a.session.switches, net.b.session.switches) == before


def test_a_much_better_relay_is_taken_once() -> None:
    net = Net()
    net.link(relay="far", delay=0.08)
    net.run(1.5)
    talk = Chatter(net)
    net.link(relay="near", delay=0.01)
    talk.talk(30.0, pause=0.5)
    net.run(1.0)
    talk.check()
    assert active(net.a) == active(net.b) == "near"
    assert net.a.session.switches == 1


# ---------------------------------------------------------------- suspicion


@pytest.mark.parametrize("ways", [(True, True), (True, False), (False, True)])
def test_a_suspect_link_recovers(ways: tuple[bool, bool]) -> None:
    """FAILURES 6, 7: one direction is dead, or both, is left, comes back and is used again."""
    net = two_relays()
    talk = Chatter(net)
    talk.talk(1.0)
    net.silence(1, True, ways)
    talk.talk(2.0)
    assert active(net.a) == active(net.b) == "r2"
    net.silence(1, False)
    talk.talk(5.0)
    net.run(1.0)
    talk.check()
    for end in (net.a, net.b):
        assert events.RECOVERED in end.kinds() or end is net.b  # b may have heard of it from a only
        assert relays_of(end) == {"r1", "r2"}
        assert not any(link.doubted for link in end.session.links)
    # … and it serves again when the other one falls.
    net.relay_dies("r2")
    talk.talk(1.0)
    net.run(1.0)
    talk.check()


@pytest.mark.parametrize("ways", [(True, True), (True, False), (False, True)])
def test_the_only_link_is_doubted_and_recovers(ways: tuple[bool, bool]) -> None:
    net = Net()
    net.link(relay="r1")
    net.run(1.5)
    talk = Chatter(net)
    net.silence(1, True, ways)
    talk.talk(DEAD_AFTER / 2)
    net.silence(1, False)
    talk.talk(3.0)
    net.run(1.0)
    talk.check()
    assert len(net.pipes) == 1 and not net.a.session.resent and not net.b.session.resent


def test_what_comes_in_does_not_vouch_for_what_goes_out() -> None:
    """FAILURES 6: the peer's datagrams keep coming on the link on which nothing of ours arrives."""
    net = Net()
    net.link(relay="r1")
    net.run(1.5)
    stream, flow = net.a.open(), net.a.open_udp()
    net.run(0.3)
    net.silence(1, ways=(True, False))
    net.a.session.send(stream, b"request")
    began = net.now
    while events.SUSPECTED not in net.a.kinds():
        net.b.session.send_datagram(net.b.streams[flow.id], b"still here")
        net.run(0.02)
        assert net.now - began < 1.0, "inbound data keeps a link alive that takes nothing"
    assert len(net.a.datagrams[flow.id]) > 5
    net.link(relay="r2")
    net.run(0.5)
    assert net.b.got[stream.id] == b"request"


@pytest.mark.parametrize("slow", [0.4, 0.8, 1.4])
def test_a_link_that_gets_slow_is_suspected_in_error_and_nothing_comes_twice(slow: float) -> None:
    """FAILURES 24: slow is not dead, doubted in error is not closed."""
    net = two_relays()
    talk = Chatter(net)
    talk.talk(1.0)
    for _ in range(3):
        for delay in (slow, 0.02):
            for wire in net.pipes[1][2:]:
                wire.delay = delay
            talk.talk(4.0)
    net.run(4.0)
    talk.check()
    assert any(kind == events.SUSPECTED for kind in net.a.kinds())
    assert len(net.pipes) == 2, "slow is not dead"


def test_a_silent_standby_is_noticed_and_closed() -> None:
    net = two_relays()
    talk = Chatter(net)
    net.silence(2)
    talk.talk(DEAD_AFTER + 5.0)
    assert relays_of(net.a) == relays_of(net.b) == {"r1"}
    assert [kind for kind in net.a.kinds() if kind == events.SUSPECTED]
    talk.check()
    assert net.a.session.switches == 0


@pytest.mark.parametrize("how", ["cut", "silence"])
def test_the_second_link_fails_while_the_first_is_doubted_and_a_third_takes_over(how: str) -> None:
    net = two_relays()
    talk = Chatter(net)
    net.silence(1)
    while net.a.session.second is None:
        talk.talk(0.02, pause=0.01)
    if how == "cut":
        net.relay_dies("r2")
    else:
        net.silence(2)
    talk.talk(0.5)
    net.link(relay="r3")
    began = net.now
    while net.b.got.get(1, b"") != talk.said["a"] or net.a.got.get(1, b"") != talk.said["b"]:
        net.run(0.02)
        assert net.now - began < 3.0, "waits for links that are silent"
    talk.talk(2.0)
    net.run(1.0)
    talk.check()
    assert active(net.a) == active(net.b) == "r3"


def test_both_are_doubted_while_a_third_has_been_there_all_along() -> None:
    net = Net()
    for relay, delay in (("r1", 0.02), ("r2", 0.021), ("r3", 0.022)):
        net.link(relay=relay, delay=delay)
    net.run(0.3)
    talk = Chatter(net)
    net.silence(1)
    while net.a.session.second is None:
        talk.talk(0.02, pause=0.01)
    assert len(net.pipes) == 3 and net.a.session.second.relay == "r2"
    net.silence(2)
    began = net.now
    talk.talk(0.1)
    while net.b.got.get(1, b"") != talk.said["a"]:
        net.run(0.02)
        assert net.now - began < 1.0, "waits for the survey, or for silent links to be closed"
    net.run(1.0)
    talk.check()


def test_a_vanished_peer_costs_no_haste_for_long() -> None:
    net = two_relays()
    talk = Chatter(net)
    talk.talk(1.0)
    for number in list(net.pipes):
        net.silence(number)
    net.a.session.send(talk.stream, b"anybody there?")
    net.run(DEAD_AFTER + 3.0)
    assert not net.a.session.links and not net.a.session.busy
    assert net.a.session.linkless_since is not None


# ---------------------------------------------------------------- links that end in order


def test_an_unconfirmed_link_ends_in_bounded_time() -> None:
    """Somebody repeated a JOIN: he holds the connection open and can say nothing."""
    net = two_relays()
    link = Link(99, DIRECT, PlainCipher(), net.now)
    link.owner = 99
    net.b.session.link_up(link, net.now)
    closed: list[str] = []
    limit = net.now + CONFIRM_WITHIN + 2.0
    while net.now < limit and not closed:
        net.now += 0.1
        closed += [detail for kind, subject, detail in net.b.session.tick(net.now) if subject is link]
    assert closed == ["silent"]
    assert active(net.b) == "r1", "it was never used, although direct links are preferred"


def test_a_session_whose_links_never_come_to_life_counts_as_cut_off() -> None:
    net = two_relays()
    net.relay_dies("r1")
    net.relay_dies("r2")
    since = net.a.session.linkless_since
    assert since is not None
    for _ in range(5):
        number = net.link(relay="r1")
        net.silence(number)
        net.run(1.0)
        net.cut(number)
    assert net.a.session.linkless_since == since, "each fruitless link began the time anew"


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_retired_link_is_closed_at_both_ends_and_loses_nothing(side: str) -> None:
    net = two_relays()
    talk = Chatter(net)
    end = net.a if side == "a" else net.b
    data = bytes(range(256)) * 900
    talk.said["a"] += data
    assert net.a.session.send(talk.stream, data) == len(data)
    net.step()
    link = end.session.active
    assert link is not None
    end.session.retire(link)
    talk.talk(CLOSE_AFTER / 2)
    talk.check()
    assert relays_of(net.a) == relays_of(net.b) == {"r2"}
    assert len(net.pipes) == 1
    assert not net.a.session.resent, "what was on it was heard"


def test_a_retired_link_whose_other_end_is_mute_is_closed_all_the_same() -> None:
    net = two_relays()
    talk = Chatter(net)
    net.silence(1)
    net.a.session.retire(net.pipes[1][0])
    talk.talk(CLOSE_AFTER + 1.0)
    net.run(1.0)
    assert 1 not in net.pipes
    talk.check()


def test_a_draining_relay_is_left_as_soon_as_there_is_another() -> None:
    net = Net()
    net.link(relay="r1")
    net.run(1.5)
    talk = Chatter(net)
    for end in (net.a, net.b):
        end.apply(end.session.drain_relay("r1"))
    talk.talk(1.0)
    assert active(net.a) == "r1", "a draining relay is better than none"
    net.link(relay="r2", delay=0.2)
    talk.talk(3.0)
    assert active(net.a) == active(net.b) == "r2", "even a slower one"
    net.relay_dies("r1")
    talk.talk(1.0)
    net.run(1.0)
    talk.check()
    assert not net.a.session.resent


def test_a_standby_over_a_draining_relay_is_kept_until_there_is_another() -> None:
    """Should the active link be doubted meanwhile, there is a way still; but the relay does not wait for ever."""
    for another in (True, False):
        net = two_relays()
        net.run(SURPLUS_AFTER)
        talk = Chatter(net)
        standby = ({"r1", "r2"} - {active(net.a)}).pop()
        for end in (net.a, net.b):
            end.apply(end.session.drain_relay(standby))
        talk.talk(STANDBY_KEPT - 0.5)
        assert relays_of(net.a) == relays_of(net.b) == {"r1", "r2"}
        if another:
            net.link(relay="r3", delay=0.2)
        talk.talk(SURPLUS_AFTER)
        net.run(1.0)
        talk.check()
        assert relays_of(net.a) == relays_of(net.b) == {"r1", "r2", "r3"} - {standby} - (set() if another else {"r3"})


def test_direct_beats_punched_beats_relayed_whatever_the_round_trip() -> None:
    net = Net()
    net.link(relay="r1", delay=0.005)
    net.run(1.5)
    talk = Chatter(net)
    for kind, delay in ((PUNCHED, 0.05), (DIRECT, 0.1)):
        net.link(kind=kind, relay="", delay=delay)
        talk.talk(3.0)
        assert net.a.session.active is not None and net.a.session.active.kind == kind
    talk.talk(20.0)
    net.run(1.0)
    talk.check()
    assert [link.kind for link in net.a.session.links] == [DIRECT]


def test_only_the_initiator_retires_and_a_lost_path_is_not_retired_for() -> None:
    """The other end may have lost the new path already: the old ones are kept until it answered there."""
    net = Net()
    net.link(relay="r1", delay=0.02)
    net.run(1.5)
    talk = Chatter(net)
    talk.talk(0.5)
    number = net.link(kind=DIRECT, relay="", delay=0.02)
    while net.a.session.active is None or net.a.session.active.kind != DIRECT:
        net.run(0.01)
    net.part(number, net.b, after=3.0)
    talk.talk(5.0)
    net.run(1.0)
    talk.check()
    assert relays_of(net.a) == {"r1"}
    assert net.a.session.active is not None and net.a.session.active.kind == RELAYED


# ---------------------------------------------------------------- links that only one side knows to be lost


@pytest.mark.parametrize("lost", [["r1", "r2"], ["r2", "r1"]])
def test_the_peer_is_told_of_links_that_are_lost_here(lost: list[str]) -> None:
    """An address is gone: this side knows at once, the other one only when it misses answers. It must not send its own
    answers into the void meanwhile."""
    net = two_relays()
    talk = Chatter(net)
    talk.talk(1.0)
    a, b = net.a.session, net.b.session
    for number in net.pipes:
        net.silence(number)
    for relay in lost:
        link = next(link for link in a.links if link.relay == relay)
        net.a.apply(a.link_down(link, net.now, "path_lost"))
    net.link(relay="r3")
    net.run(0.15)  # a round trip takes 0.04 s, suspicion at least 0.3 s
    assert active(net.a) == "r3"
    assert {link.relay for link in b.links if link.doubted} == {"r1", "r2"}
    talk.talk(0.2, pause=0.1)
    talk.check()
    assert active(net.b) == "r3"
