"""Hole punching as a conversation, in fake time."""

import json

import pytest

from services.tunnel.core.punch import (
    AGAIN,
    ANSWER_WITHIN,
    GO,
    MAX_ADDRESSES,
    NO_ADDRESS,
    OFFER,
    PROVEN_AFTER,
    READY,
    SUCCESS,
    Connect,
    Punch,
    Say,
    Word,
    usable,
)

A, B = (("203.0.113.1", 20006),), (("203.0.113.2", 20006),)
RTT = 0.06


def talk(starter: Punch, answerer: Punch, now: float, own_a=A, own_b=B) -> tuple[list[Connect], list[Connect]]:
    """One attempt without delay; what each side is told to connect to."""
    told: tuple[list[Connect], list[Connect]] = ([], [])
    queue = [(answerer, action) for action in starter.begin(own_a, now)]
    while queue:
        to, action = queue.pop(0)
        if isinstance(action, Connect):
            told[0 if to is answerer else 1].append(action)
            continue
        other, own = (starter, own_b) if to is answerer else (answerer, own_a)
        word = Word.decode(action.word.encode())
        assert word == action.word
        queue += [(other, reaction) for reaction in to.receive(word, own, RTT, now)]
    return told


def pair() -> tuple[Punch, Punch]:
    return Punch(starter=True), Punch(starter=False)


def test_both_connect_to_the_other_at_the_same_moment() -> None:
    starter, answerer = pair()
    first, second = talk(starter, answerer, 0.0)
    assert first == [Connect(B, RTT / 2)], "the starter waits until GO has arrived"
    assert second == [Connect(A, 0.0)]
    assert starter.busy(0.0) and answerer.busy(0.0)


def test_nobody_else_starts() -> None:
    """FAILURES 20: one side alone starts a punch, so nothing has to be cancelled."""
    assert Punch(starter=False).begin(A, 0.0) == []


def test_without_an_address_there_is_nothing_to_say() -> None:
    starter, answerer = pair()
    assert starter.begin((), 0.0) == []
    assert talk(starter, answerer, 0.0, own_b=()) == ([], [])
    assert starter.begin(A, ANSWER_WITHIN + 0.1), "and it is tried again"


def test_a_peer_that_is_slow_to_be_ready_is_waited_for() -> None:
    """FAILURES 21: the relay is so near that the peer is not ready when the punch would begin."""
    starter, answerer = pair()
    [offer] = starter.begin(A, 0.0)
    [ready] = answerer.receive(offer.word, B, 0.0001, 0.0)
    go, connect = starter.receive(ready.word, A, 0.0001, 2.5)
    assert go == Say(Word(GO, 1)) and connect == Connect(B, 0.00005)


def test_late_and_repeated_words_mean_nothing() -> None:
    starter, answerer = pair()
    [offer] = starter.begin(A, 0.0)
    [ready] = answerer.receive(offer.word, B, RTT, 0.0)
    assert starter.receive(ready.word, A, RTT, ANSWER_WITHIN) == [], "too late"
    [again] = starter.begin(A, 20.0)
    assert starter.receive(ready.word, A, RTT, 20.0) == [], "of the former attempt"
    [ready] = answerer.receive(again.word, B, RTT, 20.0)
    assert len(starter.receive(ready.word, A, RTT, 20.1)) == 2
    assert starter.receive(ready.word, A, RTT, 20.1) == []
    assert answerer.receive(Word(GO, 1), B, RTT, 20.1) == []
    assert answerer.receive(Word(READY, 2, A), B, RTT, 20.1) == []


def test_an_attempt_at_a_time() -> None:
    starter, answerer = pair()
    talk(starter, answerer, 0.0)
    assert starter.begin(A, 100.0) == [], "still connecting"
    assert answerer.receive(Word(OFFER, 2, A), B, RTT, 100.0) == []
    starter.ended("no answer")
    assert starter.begin(A, 100.0)


def test_fewer_than_ten_attempts_in_the_first_ten_minutes_where_it_is_hopeless() -> None:
    """FAILURES 23: where it is hopeless, a router sees few flows."""
    starter, answerer = pair()
    attempts, now = 0, 0.0
    while now < 600:
        told, _ = talk(starter, answerer, now)
        if told:
            attempts += 1
            starter.ended("no answer within 3 s")
            answerer.ended("no answer within 3 s")
        now += 0.5
    assert 3 <= attempts < 10
    assert starter.due_in(now) < 3600, "and now and then later: the networks may have changed"


def test_an_offer_that_nobody_answers_is_no_attempt() -> None:
    """A peer that is busy with others answers a minute later, and is not made to wait for five."""
    starter, answerer = pair()
    offers = [now for now in range(60) if starter.begin(A, now)]
    assert 3 <= len(offers) <= 6 and starter.attempts == 0
    now = next(now for now in range(60, 200) if starter.due(now))
    assert now < 130
    assert talk(starter, answerer, now)[0] and starter.attempts == 1
    starter.ended("no answer")
    answerer.ended("no answer")
    assert talk(starter, answerer, now + 3)[0], "after the pause of a first attempt"


def test_offers_to_a_peer_that_never_answers_are_few() -> None:
    """FAILURES 23: each but the first takes a port of its own, and a look at it by a relay."""
    starter, _ = pair()
    assert len([now for now in range(600) if starter.begin(A, now)]) < 10
    assert [now for now in range(600, 1000) if starter.begin(A, now)], "now and then later"


def test_however_often_the_network_changes_there_are_fewer_than_ten_attempts_in_ten_minutes() -> None:
    """FAILURES 23: a route that comes and goes every few seconds."""
    starter, answerer = pair()
    made = []
    for now in range(3600):
        if now % 7 == 0:
            starter.forget()
        told, _ = talk(starter, answerer, now)
        if told:
            made.append(now)
            starter.ended("no answer")
            answerer.ended("no answer")
    assert all(sum(start <= now < start + 600 for now in made) < 10 for start in range(3000))
    assert made[-1] > 3000, "but they do not cease"


def test_attempts_that_succeed_are_not_counted_as_vain() -> None:
    """FAILURES 18: where links are cut every minute, one is punched every minute."""
    starter, answerer = pair()
    for now in range(0, 3600, 50):
        starter.renew(now + 1)
        assert talk(starter, answerer, now)[0]
        starter.ended(SUCCESS)
        answerer.ended(SUCCESS)


def test_a_change_of_the_network_begins_anew() -> None:
    starter, _ = pair()
    for now in (0.0, 10.0, 30.0):
        assert starter.begin(A, now)
    assert starter.begin(A, 40.0) == []
    starter.forget()
    assert starter.begin(A, 40.0)


@pytest.mark.parametrize(("lived", "at_once"), [(PROVEN_AFTER, True), (PROVEN_AFTER / 2, False)])
def test_a_lost_link_is_punched_again_at_once_if_it_had_lived(lived: float, at_once: bool) -> None:
    starter, answerer = pair()
    for now in (0.0, 5.0, 20.0):
        talk(starter, answerer, now)
        starter.ended("punched")
        answerer.ended("punched")
    starter.lost(lived)
    assert bool(starter.begin(A, 20.0 + lived)) == at_once


def test_the_replacement_of_a_link_waits_for_no_former_attempt_and_is_tried_as_often_as_a_first_one() -> None:
    """FAILURES 18, 23: a link that is to be replaced clears the pauses once."""
    starter, answerer = pair()
    for now in (0.0, 5.0, 20.0):
        talk(starter, answerer, now)
        starter.ended("no answer")
        answerer.ended("no answer")
    attempts, now = 0, 30.0
    while now < 600.0:
        starter.renew(7)
        told, _ = talk(starter, answerer, now)
        if told:
            attempts += 1
            starter.ended("no answer")
            answerer.ended("no answer")
        now += 0.5
    assert 3 <= attempts < 10
    starter.renew(8)
    assert starter.begin(A, now), "and once more for the next link"


def test_only_the_first_attempt_is_made_where_nothing_was_left() -> None:
    starter, answerer = pair()
    assert not starter.tried and not answerer.tried
    talk(starter, answerer, 0.0)
    assert starter.tried and answerer.tried
    starter.forget()
    assert starter.tried, "what is left is left whatever else is forgotten"


def test_without_an_own_address_the_next_look_is_a_while_away() -> None:
    starter, answerer = pair()
    starter.unable(0.0)
    answerer.unable(0.0)
    assert not starter.due(NO_ADDRESS - 0.1) and starter.due(NO_ADDRESS)
    offer = Word(OFFER, 1, A)
    assert not answerer.would_answer(offer, NO_ADDRESS - 0.1) and answerer.would_answer(offer, NO_ADDRESS)
    assert starter.attempts == 0


def test_the_word_again_is_understood_and_says_nothing_of_an_attempt() -> None:
    word = Word(AGAIN, 0)
    assert Word.decode(word.encode()) == word
    for side in pair():
        assert side.receive(word, A, RTT, 0.0) == [] and not side.busy(0.0)


def test_a_word_is_waited_for_as_long_as_it_may_come() -> None:
    starter, _ = pair()
    assert starter.patience(0.0) == 0.0
    starter.begin(A, 10.0)
    assert starter.patience(11.0) == ANSWER_WITHIN - 1.0
    starter.receive(Word(READY, 1, B), A, RTT, 11.0)
    assert starter.patience(11.0) == 0.0


def test_a_starter_that_floods_gets_one_attempt_a_second() -> None:
    answerer = Punch(starter=False)
    answers = 0
    for number in range(1000):
        now = number / 100
        for action in answerer.receive(Word(OFFER, number, A), B, RTT, now):
            answers += isinstance(action, Say)
    assert 9 <= answers <= 11


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"\xff",
        b"[]",
        b"7",
        b'"punch"',
        b"{}",
        b'{"punch": "offer"}',
        b'{"punch": "dance", "attempt": 1}',
        b'{"punch": "offer", "attempt": "1"}',
        b'{"punch": "offer", "attempt": true}',
        b'{"punch": "offer", "attempt": 1, "addresses": 5}',
        b'{"punch": "offer", "attempt": 1, "addresses": [5]}',
        b'{"punch": "offer", "attempt": 1, "addresses": [["a", 1, 2]]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_word_is_none(note: bytes) -> None:
    assert Word.decode(note) is None


def test_addresses_of_a_peer_are_bounded_and_checked() -> None:
    """FAILURES 22, 23: addresses that are none are not tried, and six at most."""
    said = [
        ["1.2.3.4", 0],
        ["1.2.3.4", 65536],
        ["host", 80],
        [5, 5],
        ["224.0.0.1", 80],
        ["0.0.0.0", 80],
        ["fe80::1", 80],
    ]
    good = [["192.0.2.1", 20006], ["192.0.2.1", 20006], ["2001:db8::1", 1]]
    note = json.dumps({"punch": OFFER, "attempt": 1, "addresses": said + good}).encode()
    assert Word.decode(note) == Word(OFFER, 1, (("192.0.2.1", 20006), ("2001:db8::1", 1)))
    assert len(usable((f"192.0.2.{number}", 1) for number in range(100))) == MAX_ADDRESSES
