"""The DHT's core: table, search, records, relays. Ids are small where distances are to be read by eye."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.discovery.core.errors import Expired, TableFull, TooLarge
from services.discovery.core.model import Record, RelayRole, Signed
from services.discovery.core.overlay import MAX_REST, Overlay
from services.discovery.core.records import RecordStore
from services.discovery.core.registry import CLOCK_SKEW
from services.discovery.core.routing import CHECK, MAX_RESTING, REST, Node, Table
from services.discovery.core.rumours import MAX_RELAYS, TURN, Rumours
from services.discovery.core.search import LIES, Search

NOW = 1_000_000.0
ids = st.integers(0, 255)


def node(number: int, where: str = "") -> Node:
    return Node(number, f"n{number}", where or f"10.0.0.{number % 250 + 1}:20008")


def table(*numbers: int, own: int = 0, k: int = 20) -> Table:
    made = Table(own, k=k)
    for number in numbers:
        made.heard(node(number), NOW)
    return made


def record(revision: int = 1, *, issued: float = NOW, relay: RelayRole | None = None) -> Record:
    return Record("n", "c", revision, issued, issued + 600, relay=relay)


def signed(size: int = 100) -> Signed:
    return Signed(b"r" * size, b"", b"")


# The table


@given(own=ids, numbers=st.lists(ids, unique=True), target=ids, count=st.integers(1, 30))
def test_nearest_is_what_sorting_everybody_gives(own: int, numbers: list[int], target: int, count: int) -> None:
    made = table(*numbers, own=own, k=256)
    everybody = sorted((n for n in numbers if n != own), key=target.__xor__)
    assert [n.id for n in made.nearest(target, count)] == everybody[:count]
    assert len(made) == len(everybody)


def test_a_full_bucket_names_the_one_silent_longest_and_a_newcomer_gets_its_place_when_that_is_dead() -> None:
    made = table(8, 9, own=0, k=2)
    made.heard(node(8), NOW)  # now 9 is the eldest
    assert made.heard(node(10), NOW) == node(9)
    assert {n.id for n in made} == {8, 9}
    # A crowd of newcomers brings no more pings on it.
    assert [made.heard(node(n), NOW + CHECK - 1) for n in (11, 12, 13)] == [None] * 3
    made.failed(9, NOW)
    assert {n.id for n in made} == {8, 9} and made.doubted(9)
    made.heard(node(8), NOW)
    made.failed(9, NOW)
    assert {n.id for n in made} == {8, 13}
    assert made.heard(node(14), NOW + CHECK) == node(8)
    made.heard(node(8), NOW + CHECK)
    assert {n.id for n in made} == {8, 13}


def test_f26_who_has_no_address_or_does_not_answer_is_handed_to_nobody() -> None:
    """FAILURES 26: entries that nobody can call, in front of live ones."""
    overlay = Overlay(0)
    for number in (1, 2, 3):
        overlay.table.heard(node(number), NOW)
    overlay.table.heard(Node(4, "n4", ""), NOW)
    assert 4 not in overlay.table, "it would take the place of one that can be called"
    overlay.table.failed(2, NOW)
    assert [n.id for n in overlay.named(0, asker=3)] == [1]
    overlay.table.heard(node(1), NOW)
    overlay.table.failed(2, NOW)
    assert 2 not in overlay.table
    assert overlay.table.resting(2, NOW + REST - 1) and not overlay.table.resting(2, NOW + REST)


def test_f26_a_neighbour_behind_our_nat_is_named_to_neighbours_only() -> None:
    """FAILURES 26: a node advertised healthy with no dialable address."""
    overlay = Overlay(0)
    overlay.table.heard(node(1), NOW)
    overlay.table.heard(Node(2, "n2", "192.168.1.2:20008", near=True), NOW)
    overlay.table.heard(Node(3, "n3", "192.168.1.3:20008,203.0.113.3:20008", near=True), NOW)
    assert [n.where for n in overlay.named(0, 9)] == [node(1).where, "203.0.113.3:20008"]
    assert [n.id for n in overlay.named(0, 9, near=True)] == [1, 2, 3]


def test_f27_our_own_loss_is_not_blamed_on_the_others() -> None:
    made = table(*range(1, 12))
    for _ in range(3):
        for number in range(1, 12):
            made.failed(number, NOW)
    assert len(made) == 11, "nobody answered: it was us"
    made.heard(node(11), NOW)
    assert len(made) == 11, "what failed during the outage may be there again"
    made.failed(10, NOW)
    assert 10 not in made and made.resting(10, NOW), "now others answer"


def test_f27_that_neighbours_answer_says_nothing_of_the_uplink() -> None:
    made = table(1, 2)
    for number in (8, 9):
        made.heard(Node(number, f"n{number}", f"192.168.1.{number}:20008", near=True), NOW)
    for _ in range(3):
        for number in (1, 2):
            made.failed(number, NOW)
        made.heard(Node(8, "n8", "192.168.1.8:20008", near=True), NOW)
    assert len(made) == 4
    made.failed(9, NOW)
    made.heard(Node(8, "n8", "192.168.1.8:20008", near=True), NOW)
    made.failed(9, NOW)
    assert {n.id for n in made} == {1, 2, 8}


def test_those_that_failed_long_ago_are_forgotten_unasked() -> None:
    made = table()
    for number in range(1, 200):
        made.failed(number, NOW + number)
    assert len(made._resting) == 199
    made.failed(1, NOW + 200)
    made.failed(7, NOW + 2 + REST)
    # 2 is over; 1 and 7 failed anew.
    assert next(iter(made._resting)) == 3 and list(made._resting)[-2:] == [1, 7]
    made.failed(250, NOW + 1000)
    assert list(made._resting) == [250]


def test_one_network_gets_three_places_in_a_bucket_and_a_private_one_as_many_as_there_are() -> None:
    made = Table(0)
    for number in range(128, 148):
        made.heard(node(number, f"8.8.8.{number}:20008"), NOW)
    assert len(made) == 3
    made.heard(node(160, "8.8.9.1:20008"), NOW)
    assert len(made) == 4
    assert len(table(*range(128, 148))) == 20
    assert node(1, "[2606:4700:1:2::3]:20008").group == "2606:4700:0001"


@given(st.lists(st.tuples(st.booleans(), ids), max_size=400))
def test_whatever_happens_the_table_is_bounded(events: list[tuple[bool, int]]) -> None:
    made = Table(0, k=2)
    for good, number in events:
        if good:
            asked = made.heard(node(number), NOW)
            assert asked is None or asked.id in made
        else:
            made.failed(number, NOW)
        assert len(made) <= 2 * 8 and 0 not in made


def test_failures_are_remembered_in_bounded_memory_and_forgiven_on_a_new_network() -> None:
    made = table()
    for number in range(1, 2 * MAX_RESTING):
        made.heard(node(1 << 200), NOW)
        made.failed(number, NOW)
    assert sum(made.resting(number, NOW) for number in range(2 * MAX_RESTING)) == MAX_RESTING
    made.forgive()
    assert not any(made.resting(number, NOW) for number in range(2 * MAX_RESTING))


def test_the_size_is_estimated_from_how_near_the_nearest_are() -> None:
    rng = random.Random(1)
    made = Table(rng.getrandbits(256))
    for _ in range(2000):
        made.heard(node(rng.getrandbits(256)), NOW)
    for number in range(20):  # the nearest of 2000
        made.heard(node(made.own ^ ((number + 1) * 2**256 // 2000)), NOW)
    assert 700 < made.size() < 6000


# The search


class World:
    """Servers that know everybody, some of whom lie or are dead."""

    def __init__(
        self, numbers: set[int], *, dead: set[int] = frozenset(), records: dict[int, int] | None = None
    ) -> None:  # type: ignore[assignment]
        self.numbers, self.dead, self.records = numbers, dead, records or {}
        self.named: dict[int, list[int]] = {}

    def run(self, search: Search[int]) -> list[int]:
        order: list[int] = []
        while questions := search.ask():
            for asked in questions:
                order.append(asked.id)
                if asked.id in self.dead or asked.id not in self.numbers:
                    search.failed(asked)
                    continue
                near = sorted(self.numbers, key=search.target.__xor__)[:20]
                named = [node(n) for n in self.named.get(asked.id, near)]
                revision = self.records.get(asked.id, 0)
                search.answered(asked, named, revision or None, revision)
        assert search.done
        return order


@given(numbers=st.sets(st.integers(1, 255), min_size=1), target=ids, data=st.data())
def test_a_search_ends_with_the_nearest_that_live(numbers: set[int], target: int, data: st.DataObject) -> None:
    dead = data.draw(st.sets(st.sampled_from(sorted(numbers))))
    alive = numbers - dead
    start = sorted(numbers)[:3] + sorted(alive)[:1]
    search: Search[int] = Search(target, 0, [node(n) for n in start], width=8, max_asked=1000)
    order = World(numbers, dead=dead).run(search)
    assert len(order) == len(set(order)), "nobody is asked twice"
    near = sorted(numbers, key=target.__xor__)[:20]
    expected = sorted(alive & (set(near) | set(start)), key=target.__xor__)[:8]
    assert [n.id for n in search.nearest()] == expected


def test_alpha_questions_are_open_at_once() -> None:
    search: Search[int] = Search(0, 99, [node(n) for n in (1, 2, 3, 4, 5)])
    assert [n.id for n in search.ask()] == [1, 2, 3]
    assert search.ask() == [] and not search.done
    search.failed(node(2))
    assert [n.id for n in search.ask()] == [4]
    search.answered(node(77), [node(6)])  # never asked
    search.answered(node(1), [node(6)])
    search.answered(node(1), [node(7)])  # twice
    assert [n.id for n in search.ask()] == [5]


def test_f26_a_stale_record_never_sits_in_front_of_a_live_one() -> None:
    """FAILURES 26: an old record in front of a newer one, at a keeper and among answers."""
    search: Search[int] = Search(0, 99, [node(n) for n in (1, 2, 3, 4, 5)], quorum=3)
    World({1, 2, 3, 4, 5}, records={1: 4, 2: 9, 3: 5}).run(search)
    assert search.best == 9 and search.hops == 1
    store = RecordStore(0)
    assert store.put(1, record(9), signed(), NOW) and not store.put(1, record(4), signed(), NOW)
    held = store.get(1, NOW)
    assert held is not None and held.revision == 9
    assert store.get(1, NOW + 601) is None, "what is out of date is given to nobody"


def test_who_names_dead_nodes_is_not_believed_any_more() -> None:
    world = World(set(range(100, 140)))
    world.named[130] = list(range(1, 21))  # nearer than anybody, and not there
    search: Search[int] = Search(0, 99, [node(130), node(131)], width=4)
    order = world.run(search)
    assert sum(n < 100 for n in order) <= LIES + 2, "two more may be open when the third lie comes out"
    assert [n.id for n in search.nearest()] == [100, 101, 102, 103]
    # What an honest node names too is asked after all.
    world.numbers.add(20)
    again: Search[int] = Search(0, 99, [node(130), node(131)], width=4)
    world.run(again)
    assert again.nearest()[0].id == 20


def test_a_search_ends_whatever_liars_name() -> None:
    search: Search[int] = Search(0, 99, [node(200)], width=1000, max_asked=30)
    number = 1000
    while questions := search.ask():
        for asked in questions:
            search.answered(asked, [node(number + n) for n in range(1000)])
            number += 1000
    assert search.asked == 30 and search.done
    assert len(search._candidates) <= 1 + 30 * 20


# Records


def test_records_that_ran_out_make_room_with_the_next_that_comes() -> None:
    store = RecordStore(0)
    for number in range(1, 6):
        store.put(number, record(issued=NOW + number), signed(), NOW + number)
    end = record(issued=NOW).expires_at - NOW
    store.put(9, record(issued=NOW + 3 + end), signed(), NOW + 3 + end)
    assert [store.get(number, NOW) is not None for number in range(1, 6)] == [False, False, False, True, True]
    assert len(store) == 3 and store.bytes == 3 * signed().size


def test_records_out_of_time_or_too_large_are_refused() -> None:
    store = RecordStore(0)
    for issued in (NOW - 601 - CLOCK_SKEW, NOW + CLOCK_SKEW + 1):
        with pytest.raises(Expired):
            store.put(1, record(issued=issued), signed(), NOW)
    with pytest.raises(TooLarge):
        store.put(1, record(), signed(16_385), NOW)
    assert store.put(1, record(issued=NOW + CLOCK_SKEW - 1), signed(), NOW)
    # However far its clock is ahead, a record is believed for its lifetime from now on, no longer.
    assert store.get(1, NOW + 599) and not store.get(1, NOW + 600)


def test_a_flood_of_names_pushes_out_only_what_is_not_this_nodes_to_keep() -> None:
    rng = random.Random(2)
    own = rng.getrandbits(256)
    store = RecordStore(own, capacity=50)
    mine = [own ^ (n + 1) for n in range(8)]
    for key in mine:
        store.put(key, record(), signed(), NOW)
    for _ in range(5000):
        try:
            store.put(rng.getrandbits(256), record(), signed(), NOW)
        except TableFull:
            pass
    assert len(store) == 50 and all(store.get(key, NOW) for key in mine)
    # What is out of date makes room before anything else.
    store.put(own ^ 1 << 255, record(issued=NOW + 700), signed(), NOW + 700)
    assert len(store) == 1


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 63), st.integers(1, 9), st.integers(0, 5000), st.integers(0, 900))))
def test_bytes_are_bounded_and_the_newest_revision_stays(puts: list[tuple[int, int, int, int]]) -> None:
    store = RecordStore(7, capacity=8, max_bytes=10_000)
    for key, revision, size, age in puts:
        before = store.get(key, NOW + age)
        try:
            taken = store.put(key, record(revision, issued=NOW + age), signed(size), NOW + age)
        except TableFull:
            assert before is None or before.revision < revision
            continue
        after = store.get(key, NOW + age)
        assert after is not None and after.revision == max(revision, before.revision if before else 0)
        assert taken == (before is None or revision > before.revision)
        assert len(store) <= 8 and store.bytes == sum(held.signed.size for held in store) <= 10_000


# Relays


def test_relays_are_told_the_newest_first_and_bounded() -> None:
    overlay = Overlay(0)
    role = RelayRole()
    for number in range(1, 2 * MAX_RELAYS):
        try:
            overlay.meet_relay(number, record(relay=role), signed(number), NOW)
        except TableFull:
            pass
    assert len(overlay.relays) == MAX_RELAYS
    assert overlay.meet_relay(3, record(2, relay=role), signed(333), NOW)
    assert not overlay.meet_relay(3, record(2, relay=role), signed(333), NOW), "no news"
    told = overlay.told(NOW, random.Random(3))
    assert len(told) == 4 and 333 in {held.signed.size for held in told}
    assert not overlay.told(NOW + 601, random.Random(3))


def test_every_relay_has_its_turn_and_those_in_use_stay() -> None:
    """So the nearest of many is measured, and chosen, sooner or later."""
    rumours = Rumours(0)
    for number in range(1, MAX_RELAYS + 1):
        assert rumours.put(number, named(number), signed(), NOW)
    with pytest.raises(TableFull):
        rumours.put(99, named(99), signed(), NOW + TURN - 1)
    rumours.use({2, 98})
    assert rumours.put(98, named(98), signed(), NOW + 1) and rumours.left == ["r1"], "what is in use gets a place"
    for number in (*range(2, MAX_RELAYS + 1), 98):
        assert rumours.put(number, named(number, 2), signed(), NOW + 300), "a new version is no new turn"
    later = NOW + TURN
    for number in range(100, 100 + MAX_RELAYS - 2):
        assert rumours.put(number, named(number), signed(), later)
    assert rumours.left == ["r1", *(f"r{number}" for number in range(3, MAX_RELAYS + 1))]
    assert rumours.get(2, later) and rumours.get(98, later) and len(rumours) == MAX_RELAYS
    with pytest.raises(TableFull):
        rumours.put(200, named(200), signed(), later)


def named(number: int, revision: int = 1) -> Record:
    return replace(record(revision, relay=RelayRole(), issued=NOW + revision * 300), node_name=f"r{number}")


def test_who_is_no_relay_any_more_is_told_no_more() -> None:
    overlay = Overlay(0)
    for ended in (None, RelayRole(draining=True)):
        assert overlay.meet_relay(1, record(5, relay=RelayRole()), signed(), NOW)
        assert not overlay.meet_relay(1, record(4, relay=ended), signed(), NOW)
        assert len(overlay.relays) == 1, "an old word does not end it"
        overlay.meet_relay(1, record(6, relay=ended), signed(), NOW)
        assert not len(overlay.relays)
    assert not overlay.meet_relay(0, record(relay=RelayRole()), signed(), NOW), "oneself"


def test_first_contacts_are_asked_beside_the_table_and_those_that_failed_are_not() -> None:
    overlay = Overlay(0)
    for number in range(1, 40):
        overlay.table.heard(node(number), NOW)
    overlay.table.failed(1, NOW)
    overlay.table.heard(node(1), NOW)
    overlay.table.failed(2, NOW)
    overlay.table.failed(201, NOW)
    contact = node(200)
    search = overlay.seek(0, [contact, node(201)], NOW)
    asked = {candidate.node.id for candidate in search._candidates.values()}
    assert 2 not in asked and 201 not in asked
    assert contact.id in {candidate.node.id for candidate in search._candidates.values()}
    assert [n.id for n in search.ask()] == [1, 3, 4]


def test_a_stranger_is_called_back_only_where_there_is_room_and_hope() -> None:
    made = table(8, 9, own=0, k=2)
    assert made.wants(4, NOW)
    assert not made.wants(10, NOW), "its bucket is full"
    assert not made.wants(0, NOW) and not table(8).wants(8, NOW)
    made.failed(4, NOW)
    assert not made.wants(4, NOW) and made.wants(4, NOW + REST)


# Pings


def test_a_ping_serves_both_sides_but_now_and_then_a_node_looks_itself() -> None:
    made = Overlay(0)
    made.table.heard(node(8), NOW)
    assert made.due(NOW, 5.0, strangers=False) == NOW + 5
    made.pinged(9, NOW + 2)  # who is not in the table may be anybody, and cannot be called
    assert made.due(NOW, 5.0, strangers=False) == NOW + 5
    made.pinged(8, NOW + 2)
    assert made.due(NOW, 5.0, strangers=False) == NOW + 7
    assert made.due(NOW, 5.0, strangers=True) == NOW + 5
    made.pinged(8, NOW + 14)
    assert made.due(NOW, 5.0, strangers=False) == NOW + 5 * MAX_REST
    assert made.due(NOW + 20, 5.0, strangers=False) == NOW + 25


def test_of_two_that_ping_each_other_it_is_about_one_in_a_pause() -> None:
    rng = random.Random(1)
    pair = {0: Overlay(0), 8: Overlay(8)}
    pair[0].table.heard(node(8), NOW)
    pair[8].table.heard(node(0), NOW)
    began, pauses = dict.fromkeys(pair, NOW), dict.fromkeys(pair, 5.0)
    pings = {0: 0, 8: 0}
    while True:
        due = {own: made.due(began[own], pauses[own], strangers=False) for own, made in pair.items()}
        own = min(due, key=due.__getitem__)
        if due[own] > NOW + 5000:
            break
        began[own], pauses[own] = due[own], 5.0 * rng.uniform(0.9, 1.1)
        pings[own] += 1
        pair[8 - own].pinged(own, due[own])
    assert min(pings.values()) >= 5000 / 5 / MAX_REST / 1.1
    assert sum(pings.values()) < 1.5 * 5000 / 5
