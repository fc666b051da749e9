"""The broker with a fake clock: single decisions, then random schedules against invariants."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.relay.core.broker import RETRY_AFTER, Action, Broker, Disconnect, Failed, Opening, Send
from services.relay.core.limits import Limits
from services.relay.core.messages import (
    VERSION,
    Circuit,
    Connect,
    DrainNotice,
    Heartbeat,
    Hello,
    Incoming,
    Message,
    Reason,
    Refused,
    Reject,
    Reserve,
    Reserved,
    Voucher,
    Welcome,
    Withdraw,
)
from services.tunnel.core.choice import LOAD_LIMIT, Option, decide

from .harness import limits

LIMITS = limits(max_reservations=3, max_circuits=4, max_circuits_per_peer=2, max_connections_per_peer=2)


def voucher(peer: str, ttl: float) -> Voucher:
    return Voucher("r", peer, int(ttl), b"signed")


def make(limits: Limits = LIMITS) -> Broker:
    return Broker("r", "c", limits, random.Random(7), voucher, alternatives=("r2",))


def greet(broker: Broker, conn: int, peer: str) -> list[Action]:
    answer, actions = broker.greet(conn, Hello(VERSION, "c", peer), peer, "192.0.2.1:7")
    assert answer == Welcome(VERSION, "r", "192.0.2.1:7")
    return actions


def ask(broker: Broker, conn: int, message: Message, now: float = 0.0) -> Message:
    """The answer on the same connection."""
    answers = [a for a in broker.receive(conn, 5, message, now) if isinstance(a, Send) and (a.conn, a.id) == (conn, 5)]
    assert len(answers) == 1
    return answers[0].message


def called(broker: Broker, conn: int, peer: str, now: float = 0.0) -> tuple[Opening, Incoming, Circuit]:
    """A call that must succeed."""
    opening, incoming, circuit = broker.receive(conn, 5, Connect(peer), now)
    assert isinstance(opening, Opening)
    assert isinstance(incoming, Send)
    assert isinstance(incoming.message, Incoming)
    assert isinstance(circuit, Send)
    assert isinstance(circuit.message, Circuit)
    assert (circuit.conn, circuit.id, incoming.id) == (conn, 5, 0)
    return opening, incoming.message, circuit.message


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(2, "c", "a"), "bad-version"),
        (Hello(VERSION, "x", "a"), "wrong-cluster"),
        (Hello(VERSION, "c", "b"), "name-mismatch"),
        (Hello(VERSION, "c", "a", "other"), "name-mismatch"),
        (Reserve(), "bad-version"),
    ],
)
def test_greeting_is_judged(hello: Message, reason: str) -> None:
    broker = make()
    answer, actions = broker.greet(1, hello, "a", "192.0.2.1:7")
    assert isinstance(answer, Reject)
    assert (answer.reason, actions) == (reason, [])
    assert not broker.connections
    assert broker.refused == {reason: 1}
    assert broker.receive(1, 1, Reserve(), 0.0) == []


def test_call_is_told_to_both_and_legs_are_paired() -> None:
    broker = make()
    greet(broker, 1, "a")
    greet(broker, 2, "b")
    assert ask(broker, 2, Reserve()) == Reserved(3600.0, voucher("b", 3600.0))
    opening, incoming, circuit = called(broker, 1, "b")
    assert incoming.peer == "a"
    assert incoming.timeout == circuit.timeout == 10.0
    assert incoming.token != circuit.token
    assert len(incoming.token) == len(circuit.token) == 32
    first = broker.arrive(incoming.token, 21, 1.0)
    assert first is not None
    assert not first.paired
    assert broker.arrive(incoming.token, 22, 1.0) is None
    second = broker.arrive(circuit.token, 11, 2.0)
    assert second is first is opening.circuit
    assert (second.paired, second.legs) == (True, [11, 21])
    assert broker.tick(100.0) == []
    assert broker.circuits_total == 1
    broker.finish(second.id)
    assert len(broker.circuits) == 0


def test_leg_that_stays_alone_is_given_back() -> None:
    broker = make()
    greet(broker, 1, "a")
    greet(broker, 2, "b")
    ask(broker, 2, Reserve())
    opening, _, circuit = called(broker, 1, "b", 5.0)
    assert broker.next_tick == 15.0
    broker.arrive(circuit.token, 11, 6.0)
    assert broker.tick(14.9) == []
    (failed,) = broker.tick(15.0)
    assert isinstance(failed, Failed)
    assert failed.circuit is opening.circuit
    assert failed.circuit.legs == [11, None]
    assert "callee" in failed.reason
    assert len(broker.circuits) == 0


@pytest.mark.parametrize("side", [0, 1], ids=["caller", "callee"])
def test_whoever_gives_up_ends_the_circuit_for_both(side: int) -> None:
    broker = make()
    greet(broker, 1, "a")
    greet(broker, 2, "b")
    ask(broker, 2, Reserve())
    for way in ("word", "hang up"):
        opening, incoming, circuit = called(broker, 1, "b")
        mine, theirs = (circuit.token, incoming.token) if side == 0 else (incoming.token, circuit.token)
        if way == "word":
            broker.arrive(theirs, 30, 1.0)
            (failed,) = broker.receive(side + 1, 6, Withdraw(mine), 1.0)
            assert broker.receive(side + 1, 6, Withdraw(mine), 1.0) == []
        else:
            broker.arrive(mine, 30, 1.0)
            assert broker.receive(side + 1, 6, Withdraw(mine), 1.0) == [], "the leg is there"
            (failed,) = broker.hang_up(opening.circuit, 30)
            assert broker.arrive(theirs, 31, 1.0) is None
        assert isinstance(failed, Failed) and failed.circuit is opening.circuit and failed.given_up
        assert failed.reason == f"the {('caller', 'callee')[side]} gave it up"
        assert len(broker.circuits) == 0 and broker.next_tick is not None and broker.next_tick > 100.0


def test_token_is_worth_nothing_after_the_deadline() -> None:
    broker = make()
    greet(broker, 1, "a")
    greet(broker, 2, "b")
    ask(broker, 2, Reserve())
    _, incoming, _ = called(broker, 1, "b")
    assert broker.arrive(incoming.token, 21, 10.0) is None
    assert broker.refused["bad-token"] == 1


def test_reservation_expires_unless_refreshed() -> None:
    broker = make()
    greet(broker, 1, "a")
    greet(broker, 2, "b")
    ask(broker, 2, Reserve(), 0.0)
    ask(broker, 2, Reserve(), 3000.0)
    broker.tick(3600.0)
    assert broker.reservations.has("b")
    broker.tick(6600.0)
    assert not broker.reservations.has("b")
    answer = ask(broker, 1, Connect("b"), 6600.0)
    assert isinstance(answer, Refused)
    assert answer.reason is Reason.NO_RESERVATION


def test_newest_holder_is_active_and_the_older_returns_when_it_goes() -> None:
    """FAILURES 12: the same key returns, and does not fight its former self."""
    broker = make()
    for conn, peer in ((1, "b"), (2, "b"), (3, "a")):
        greet(broker, conn, peer)
    ask(broker, 1, Reserve(), 0.0)
    ask(broker, 2, Reserve(), 1.0)
    ask(broker, 1, Reserve(), 2.0)
    assert broker.reservations.active("b") == 2
    assert len(broker.reservations) == 1
    broker.leave(2)
    assert broker.reservations.active("b") == 1
    broker.leave(1)
    assert broker.reservations.active("b") is None


def test_too_many_connections_of_one_name_end_the_oldest() -> None:
    broker = make()
    assert greet(broker, 1, "a") == []
    assert greet(broker, 2, "a") == []
    (action,) = greet(broker, 3, "a")
    assert isinstance(action, Disconnect)
    assert action.conn == 1
    assert set(broker.connections) == {2, 3}


def test_those_without_room_are_spread_by_the_relay() -> None:
    """FAILURES 10: each is told another time to come back, so that they do not come together."""
    broker = make()
    for conn, peer in enumerate("abcd"):
        greet(broker, conn, peer)
    for conn in range(3):
        ask(broker, conn, Reserve())
    times = []
    for _ in range(100):
        answer = ask(broker, 3, Reserve())
        assert isinstance(answer, Refused)
        times.append(answer.retry_after)
    assert max(times) - min(times) > RETRY_AFTER / 2


def test_no_room_is_said_with_alternatives_and_when_to_ask_again() -> None:
    broker = make()
    for conn, peer in enumerate("abcde"):
        greet(broker, conn, peer)
    for conn in range(3):
        assert isinstance(ask(broker, conn, Reserve()), Reserved)
    answer = ask(broker, 3, Reserve())
    assert isinstance(answer, Refused)
    assert (answer.reason, answer.alternatives) == (Reason.LIMIT, ("r2",))
    assert RETRY_AFTER <= answer.retry_after <= 2 * RETRY_AFTER
    assert isinstance(ask(broker, 0, Reserve()), Reserved), "a refresh needs no room"
    greet(broker, 10, "f")
    answer, _ = broker.greet(11, Hello(VERSION, "c", "g"), "g", "192.0.2.1:7")
    assert isinstance(answer, Refused)
    assert "control connections" in answer.message


def test_draining_grants_nothing_and_tells_all() -> None:
    broker = make()
    greet(broker, 1, "a")
    greet(broker, 2, "b")
    ask(broker, 2, Reserve())
    actions = broker.drain(9.0)
    assert [(a.conn, a.id) for a in actions if isinstance(a, Send)] == [(1, 0), (2, 0)]
    for action in actions:
        assert isinstance(action, Send)
        assert isinstance(action.message, DrainNotice)
        assert 0 < action.message.spread <= action.message.deadline == 9.0
    for conn, message in ((1, Connect("b")), (2, Reserve())):
        answer = ask(broker, conn, message)
        assert isinstance(answer, Refused)
        assert answer.reason is Reason.DRAINING
        assert answer.alternatives == ("r2",)


def test_load_is_that_of_the_tightest_limit() -> None:
    broker = make()
    greet(broker, 1, "a")
    assert ask(broker, 1, Heartbeat()) == Heartbeat(0)
    ask(broker, 1, Reserve())
    assert ask(broker, 1, Heartbeat()) == Heartbeat(333)
    broker.busy_share = 0.9
    assert ask(broker, 1, Heartbeat()) == Heartbeat(900)


def test_reservations_alone_keep_new_pairs_away_and_send_nobody_away() -> None:
    """The nearest relay is full of them: pairs that left would have freed none, and so would have left to the last."""
    broker = make()
    for conn, peer in enumerate("abc"):
        greet(broker, conn, peer)
        ask(broker, conn, Reserve())
    assert ask(broker, 1, Heartbeat()) == Heartbeat(LOAD_LIMIT)
    here, there = (Option("r", 0.010, load=LOAD_LIMIT), Option("r2", 0.040))
    pair = frozenset(("a", "b"))
    stays, goes = decide([here, there], "r", pair, luck=0.0), decide([here, there], "", pair)
    assert stays is not None and stays.relay == "r"
    assert goes is not None and goes.relay == "r2"


class Schedule:
    """Random events; after each, what must always hold."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.broker = make()
        self.now = 0.0
        self.peers: dict[int, str] = {}
        self.tokens: list[bytes] = []
        self.used: set[bytes] = set()
        self.open: list[int] = []
        self.next_conn = 0

    def step(self) -> None:
        self.random.choice(
            (
                *(self.come, self.go, self.reserve, self.call, self.arrive, self.arrive, self.finish, self.wait),
                *(self.withdraw, self.hang_up),
            )
        )()
        self.check()

    def come(self) -> None:
        self.next_conn += 1
        peer = self.random.choice("abcde")
        answer, actions = self.broker.greet(self.next_conn, Hello(VERSION, "c", peer), peer, "192.0.2.1:7")
        if isinstance(answer, Welcome):
            self.peers[self.next_conn] = peer
        for action in actions:
            assert isinstance(action, Disconnect)
            del self.peers[action.conn]

    def go(self) -> None:
        if self.peers:
            conn = self.random.choice(list(self.peers))
            del self.peers[conn]
            before = len(self.broker.circuits)
            self.broker.leave(conn)
            assert len(self.broker.circuits) == before, "circuits outlive control connections"

    def reserve(self) -> None:
        if self.peers:
            answer = ask(self.broker, self.random.choice(list(self.peers)), Reserve(), self.now)
            assert isinstance(answer, Reserved | Refused)

    def call(self) -> None:
        if not self.peers:
            return
        conn = self.random.choice(list(self.peers))
        actions = self.broker.receive(conn, 5, Connect(self.random.choice("abcde")), self.now)
        if len(actions) == 3:
            for action in actions[1:]:
                assert isinstance(action, Send)
                assert action.conn in self.peers, "told to whoever is here"
                assert isinstance(action.message, Circuit | Incoming)
                self.tokens.append(action.message.token)
        else:
            (action,) = actions
            assert isinstance(action, Send)
            assert isinstance(action.message, Refused)

    def arrive(self) -> None:
        if self.tokens:
            token = self.random.choice(self.tokens)
            circuit = self.broker.arrive(token, self.random.randrange(1 << 30), self.now)
            if circuit is not None:
                assert token not in self.used, "a token works once"
                self.used.add(token)
                if circuit.paired:
                    self.open.append(circuit.id)

    def withdraw(self) -> None:
        if self.tokens and self.peers:
            token = self.random.choice(self.tokens)
            pending = {it for circuit in self.broker.circuits if not circuit.paired for it in circuit.tokens}
            actions = self.broker.receive(self.random.choice(list(self.peers)), 5, Withdraw(token), self.now)
            assert bool(actions) == (token in pending and token not in self.used)

    def hang_up(self) -> None:
        alone = [it for it in self.broker.circuits if not it.paired and it.legs != [None, None]]
        if alone:
            circuit = self.random.choice(alone)
            (leg,) = (it for it in circuit.legs if it is not None)
            (failed,) = self.broker.hang_up(circuit, leg)
            assert isinstance(failed, Failed) and failed.circuit is circuit

    def finish(self) -> None:
        if self.open:
            self.broker.finish(self.open.pop(self.random.randrange(len(self.open))))

    def wait(self) -> None:
        self.now += self.random.choice((0.1, 4.0, 11.0, 4000.0))
        for action in self.broker.tick(self.now):
            assert isinstance(action, Failed)
            assert not action.circuit.paired
        assert self.broker.next_tick is None or self.broker.next_tick > self.now

    def check(self) -> None:
        broker, limits = self.broker, self.broker.limits
        assert set(broker.connections) == set(self.peers)
        assert len(broker.connections) <= limits.max_connections
        assert len(broker.reservations) <= limits.max_reservations
        assert {r.conn for r in broker.reservations} <= set(self.peers)
        assert len(broker.circuits) <= limits.max_circuits
        assert len(broker.circuits) == len(broker.circuits._pending) + len(self.open)
        assert max(broker.circuits._per_peer.values(), default=0) <= limits.max_circuits_per_peer
        assert {c.id for c in broker.circuits if c.paired} == set(self.open)
        assert 0 <= broker.load_permille <= 1000


@settings(deadline=None, max_examples=200)
@given(st.integers(min_value=0), st.integers(min_value=1, max_value=150))
def test_random_schedules_keep_the_books(seed: int, steps: int) -> None:
    schedule = Schedule(seed)
    for _ in range(steps):
        schedule.step()
    # Everybody goes, time passes: nothing may be left.
    for conn in list(schedule.peers):
        schedule.broker.leave(conn)
    for circuit_id in schedule.open:
        schedule.broker.finish(circuit_id)
    schedule.broker.tick(schedule.now + 1e6)
    broker = schedule.broker
    assert (len(broker.connections), len(broker.reservations), len(broker.circuits)) == (0, 0, 0)
    assert broker.next_tick is None
    assert not broker._of_peer
    assert not broker.circuits._by_token
    assert not broker.circuits._per_peer


def test_limits_fit_the_descriptors() -> None:
    assert limits().fit(1 << 20) == limits()
    for descriptors in (256, 1024, 4096):
        small = limits().fit(descriptors)
        used = small.max_half_open + small.max_connections + 6 * small.max_circuits
        assert descriptors / 2 < used <= descriptors - 64
        assert small.max_half_open_per_source <= small.max_half_open
    assert limits().fit(1024).max_circuits == 100, "an ordinary soft limit makes a small relay, not a useless one"
    assert limits().fit(10).max_circuits == 1
