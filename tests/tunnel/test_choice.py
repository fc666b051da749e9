"""Which relays are held, and where pairs meet: the core alone, with fake time and simulated nodes."""

import itertools
import random
from collections import Counter

import pytest

from services.tunnel.core import choice
from services.tunnel.core.choice import LOAD_LIMIT, Nearness, Option, Pace, Relay, Rounds

PAIR = frozenset(("a", "b"))


def options(**rtts: float) -> list[Option]:
    return [Option(name, rtt) for name, rtt in rtts.items()]


# ---------------------------------------------------------------- round trips


def test_the_best_of_five_minutes_counts() -> None:
    near = Nearness()
    near.sample(0.020, 0.0)
    near.sample(0.050, 200.0)
    assert near.best(299.0) == 0.020
    assert near.best(301.0) == 0.050, "the best is too old, what came later is not"
    assert near.best(501.0) is None


def test_a_full_round_is_seldom_and_partial_ones_come_between() -> None:
    names = [f"r{number}" for number in range(10)]
    rounds, asked = Rounds(random.Random(1)), []
    for now in range(601):
        due = rounds.due(names, float(now))
        if due:
            asked.append((now, due))
    assert [now for now, due in asked if due == names] == [0, 300, 600]
    partial = [(now, due) for now, due in asked if due != names]
    assert all(due == names[:3] for _, due in partial), "the nearest"
    assert 20 <= len(partial) <= 30


def test_a_relay_that_is_new_is_measured_at_once() -> None:
    rounds = Rounds(random.Random(1))
    rounds.due(["r1"], 0.0)
    assert rounds.due(["r1", "r2"], 1.0) == ["r2"]


# ---------------------------------------------------------------- what is held


def test_configured_relays_come_first_and_then_the_nearest() -> None:
    relays = [Relay("earned", "1", 0, 0.001, 0), Relay("far", "2", 1, 0.060, 0), Relay("near", "3", 2, 0.005, 0)]
    assert choice.prefer(relays, ()) == ["near", "far", "earned"]


def test_what_is_held_is_kept_unless_the_gain_is_clear() -> None:
    def held_first(rtt: float) -> bool:
        relays = [Relay("new", "1", 1, 0.050, 0), Relay("held", "2", 2, rtt, 0)]
        return choice.prefer(relays, {"held"})[0] == "held"

    assert held_first(0.059) and held_first(0.070), "less than 10 ms, less than a third"
    assert not held_first(0.080)


def test_a_second_relay_in_the_same_place_comes_last() -> None:
    domain = choice.domain
    assert domain("8.8.8.1") == domain("8.8.8.200") != domain("8.8.4.1")
    assert domain("10.0.0.1") != domain("10.0.0.2"), "a private network says nothing"
    relays = [Relay(name, where, 1, 0.01, 0) for name, where in (("r1", "x"), ("r2", "x"), ("r3", "y"))]
    assert choice.prefer(relays, ()) == ["r1", "r3", "r2"]


# ---------------------------------------------------------------- a pair

SHANGHAI = {"s": 0.005, "b": 0.060}
BEIJING = {"s": 0.060, "b": 0.005}


def meet(one: dict[str, float], other: dict[str, float], current: str = "", **load: int) -> str:
    found = [Option(name, one[name] + other[name], load.get(name, 0)) for name in ("b", "s")]
    decision = choice.decide(found, current, PAIR)
    assert decision is not None
    return decision.relay


def test_shanghai_meets_in_shanghai_though_beijing_is_listed_first() -> None:
    assert meet(SHANGHAI, SHANGHAI) == "s"
    assert meet(SHANGHAI, SHANGHAI, "b") == "s", "also when they are elsewhere"
    assert meet(BEIJING, BEIJING) == "b"
    assert meet({"s": 0.005, "b": 0.060}, {"s": 0.040, "b": 0.030}) == "s", "the joint way counts: 45 to 90 ms"


def test_an_overloaded_relay_gets_no_new_pairs_and_has_them_back_later() -> None:
    assert meet(SHANGHAI, SHANGHAI, s=LOAD_LIMIT) == "b"
    assert meet(SHANGHAI, SHANGHAI, "s", s=LOAD_LIMIT) in ("s", "b")
    assert meet(SHANGHAI, SHANGHAI, "b") == "s"
    assert choice.order([Option("only", 0.01, 1000)], PAIR)[0].relay == "only", "better a full one than none"


def test_load_makes_a_relay_farther() -> None:
    assert choice.decide([Option("near", 0.040, 700), Option("far", 0.080, 0)], "", PAIR).relay == "far"


def test_no_flapping_between_relays_that_are_about_equal() -> None:
    rng, current, moves = random.Random(5), "", 0
    for _ in range(2000):
        found = options(r1=rng.uniform(0.040, 0.055), r2=rng.uniform(0.040, 0.055))
        decision = choice.decide(found, current, PAIR)
        moves += bool(current) and decision.relay != current
        current = decision.relay
    assert moves == 0


def test_both_ends_would_decide_alike() -> None:
    found = options(r1=0.010, r2=0.011, r3=0.012)
    assert choice.order(found, frozenset(("a", "b"))) == choice.order(found[::-1], frozenset(("b", "a")))


def test_of_two_that_are_as_near_the_less_used_is_taken() -> None:
    for used in (0, 5):
        found = [Option("r1", 0.01, used=used), Option("r2", 0.01, used=5 - used)]
        assert choice.decide(found, "", PAIR).relay == ("r1" if used == 0 else "r2")


# ---------------------------------------------------------------- a crowd

NODES = [f"n{number}" for number in range(12)]


class Crowd:
    """12 nodes, all pairs, relays that are equally near: each pair's lower node decides and knows only its own."""

    def __init__(self, relays: set[str], seed: int) -> None:
        self.relays = set(relays)
        self.at: dict[tuple[str, str], str] = {}
        self.rng = random.Random(seed)
        self.paces = {node: Pace(random.Random(self.rng.random())) for node in NODES}

    def look(self, pair: tuple[str, str]) -> str:
        used = Counter(relay for other, relay in self.at.items() if pair[0] in other)
        found = [Option(name, self.rng.uniform(0.010, 0.014), used=used[name]) for name in sorted(self.relays)]
        decision = choice.decide(found, self.at.get(pair, ""), frozenset(pair))
        assert decision is not None
        return decision.relay

    def settle(self) -> int:
        """Everybody looks; returns how many moved."""
        pairs = list(itertools.combinations(NODES, 2))
        self.rng.shuffle(pairs)
        moved = 0
        for pair in pairs:
            relay = self.look(pair)
            moved += self.at.get(pair, relay) != relay
            self.at[pair] = relay
        return moved


@pytest.mark.parametrize("seed", range(20))
def test_twelve_nodes_lose_their_fullest_relay_and_get_it_back(seed: int) -> None:
    crowd = Crowd({"r1", "r2", "r3"}, seed)
    crowd.settle()
    fullest, most = Counter(crowd.at.values()).most_common(1)[0]
    assert most <= 0.5 * len(crowd.at), "three share it"
    crowd.relays.remove(fullest)
    stayed = {pair: relay for pair, relay in crowd.at.items() if relay != fullest}
    crowd.settle()
    assert all(crowd.at[pair] == relay for pair, relay in stayed.items()), "nobody else is moved"
    counts = Counter(crowd.at.values())
    assert len(counts) == 2 and max(counts.values()) <= 0.6 * len(crowd.at)
    crowd.relays.add(fullest)
    assert crowd.settle() == 0, "its return moves nobody who is as well off"


def test_the_return_of_a_nearer_relay_is_no_herd() -> None:
    rng = random.Random(3)
    moves: list[float] = []
    for _ in range(100):  # nodes, with ten sessions each
        pace = Pace(rng)
        pace.see(["old"], -100.0)
        left, now = 10, 0.0
        while left:
            pace.see(["old", "new"], now)
            if pace.may("new", now):
                moves.append(now)
                left -= 1
            now += 0.1
    by_second = Counter(int(when) for when in moves)
    assert len(moves) == 1000 and max(by_second.values()) <= 100, "a tenth of a herd that comes within a second"
    assert max(moves) < 30.0, "and all are there soon"


# ---------------------------------------------------------------- the word between both ends


def test_the_word_names_a_relay_and_nothing_else_is_taken_for_one() -> None:
    assert choice.decode_word(choice.encode_word("r1")) == "r1"
    for note in (b"", b"\xff", b"[]", b"7", b'{"relay": 7}', b'{"punch": "go"}', b'{"relay": "' + b"x" * 300 + b'"}'):
        assert choice.decode_word(note) is None
