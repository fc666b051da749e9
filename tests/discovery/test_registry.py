"""Several sources, one peer: merging, newest first, expiry, room."""

from dataclasses import replace

import pytest

from services.discovery.core.errors import Expired, TableFull
from services.discovery.core.model import Address, AddressSource, Peer, Record, RelayRole, Signed, Source
from services.discovery.core.registry import CLOCK_SKEW, STALE_AGE, Named, Registry
from services.discovery.core.store import Store

NOW = 1_800_000_000.0
PROOF = Signed(b"record", b"signature", b"certificate")


def record(name: str = "b", revision: int = 1, at: float = NOW, *ips: str) -> Record:
    addresses = tuple(Address(ip, AddressSource.INTERFACE) for ip in ips or ("10.0.0.1",))
    return Record(name, "default", revision, at, at + 600, "instance", addresses, 1, 2, 3)


def registry(capacity: int = 10) -> Registry:
    return Registry("self", Store[Peer](), capacity=capacity)


def peer(known: Registry, name: str = "b") -> Peer:
    found = known.store.get(name)
    assert found is not None
    return found


def ips(found: Peer) -> list[str]:
    return [address.ip for address in found.record.addresses]


def test_a_configured_relay_is_known_before_anybody_answers() -> None:
    known = registry()
    known.configure([Named("self", 1, ("9.9.9.9",)), Named("r1", 2, ("1.1.1.1",)), Named("r2", 3, ("2.2.2.2",), 30007)])
    assert [p.record.node_name for p in known.store.values()] == ["r1", "r2"]
    r1, r2 = known.store.values()
    assert (r1.record.revision, r1.verified, r1.relay_rank, r1.sources) == (0, False, 2, (Source.CONFIG,))
    assert (r1.record.tunnel_port, r1.record.relay_port, r1.record.discovery_port) == (20006, 20007, 20008)
    assert r2.record.relay_port == 30007
    known.configure([Named("r2", 1, ("2.2.2.3",))])
    assert [(p.record.node_name, p.relay_rank, ips(p)) for p in known.store.values()] == [("r2", 1, ["2.2.2.3"])]


def test_sources_add_up_and_the_newest_record_wins() -> None:
    known = registry()
    assert known.offer(record(revision=5), PROOF, Source.LOOKUP, NOW)
    assert not known.offer(record("b", 4, NOW, "10.0.0.9"), PROOF, Source.MDNS, NOW, seen=("192.168.0.2", "10.0.0.1"))
    known.configure([Named("b", 1, ("203.0.113.1", "192.168.0.2"))])
    found = peer(known)
    assert found.record.revision == 5 and found.verified and found.relay_rank == 1
    assert found.sources == (Source.CONFIG, Source.MDNS, Source.LOOKUP)
    assert [(a.ip, a.source) for a in found.record.addresses] == [
        ("10.0.0.1", AddressSource.INTERFACE),
        ("192.168.0.2", AddressSource.MDNS),
        ("203.0.113.1", AddressSource.ADVERTISED),
    ]
    assert known.offer(record("b", 6, NOW, "10.0.0.7"), PROOF, Source.LOOKUP, NOW)
    assert ips(peer(known)) == ["10.0.0.7", "192.168.0.2", "10.0.0.1", "203.0.113.1"]
    known.withdraw("b", Source.MDNS)
    assert ips(peer(known)) == ["10.0.0.7", "203.0.113.1", "192.168.0.2"]


def test_an_outdated_record_moves_behind_what_is_live_and_is_then_forgotten() -> None:
    known = registry()
    known.configure([Named("b", 1, ("203.0.113.1",))])
    known.offer(record(), PROOF, Source.LOOKUP, NOW)
    assert ips(peer(known)) == ["10.0.0.1", "203.0.113.1"]
    assert known.next_expiry() == NOW + 600
    known.expire(NOW + 599)
    assert peer(known).sources == (Source.CONFIG, Source.LOOKUP)
    known.expire(NOW + 600)
    assert peer(known).sources == (Source.CONFIG, Source.CACHE)
    assert ips(peer(known)) == ["203.0.113.1", "10.0.0.1"]
    known.expire(NOW + 600 + STALE_AGE)
    assert peer(known).sources == (Source.CONFIG,)
    assert not peer(known).verified and peer(known).record.revision == 0 and ips(peer(known)) == ["203.0.113.1"]
    known.configure([])
    assert len(known) == 0 and len(known.store) == 0


def test_a_neighbour_that_says_goodbye_is_remembered_for_a_day() -> None:
    known = registry()
    known.offer(record(), PROOF, Source.MDNS, NOW, seen=("10.0.0.1",))
    known.withdraw("b", Source.MDNS)
    assert peer(known).sources == (Source.CACHE,)
    known.expire(NOW + STALE_AGE + 599)
    assert peer(known).verified
    known.expire(NOW + STALE_AGE + 600)
    assert known.store.get("b") is None and known.next_expiry() == float("inf")


def test_a_live_source_takes_over_from_the_cache() -> None:
    known = registry()
    old = record(at=NOW - 5000)
    known.offer(old, PROOF, Source.CACHE, NOW)
    assert peer(known).sources == (Source.CACHE,)
    assert known.fresh("b", NOW) is None
    known.offer(record(revision=2), PROOF, Source.LOOKUP, NOW)
    assert peer(known).sources == (Source.LOOKUP,)
    assert known.fresh("b", NOW) is not None
    with pytest.raises(Expired):
        known.offer(record("c", at=NOW - STALE_AGE - 601), PROOF, Source.CACHE, NOW)


@pytest.mark.parametrize("skew", [-CLOCK_SKEW + 1, 0.0, CLOCK_SKEW - 1])
def test_a_clock_that_is_minutes_off_is_allowed_for(skew: float) -> None:
    known = registry()
    known.offer(record(at=NOW + skew), PROOF, Source.LOOKUP, NOW)
    # Believed for its lifetime by *our* clock, however far off the other is.
    assert NOW + 1 <= known.next_expiry() <= NOW + 600 + 1
    known.expire(NOW + 601)
    assert peer(known).sources == (Source.CACHE,)


@pytest.mark.parametrize(("at", "says"), [(NOW - 1300, "ended 700 s ago"), (NOW + 700, "in the future")])
def test_a_record_out_of_time_is_refused(at: float, says: str) -> None:
    known = registry()
    with pytest.raises(Expired, match=says):
        known.offer(record(at=at), PROOF, Source.LOOKUP, NOW)
    assert len(known) == 0


def test_nobody_is_believed_for_longer_than_an_hour_at_once() -> None:
    known = registry()
    known.offer(replace(record(), expires_at=NOW + 10**7), PROOF, Source.LOOKUP, NOW)
    assert known.next_expiry() == NOW + 3600


def test_a_full_table_refuses_lookups_but_never_relays_or_neighbours() -> None:
    known = registry(capacity=4)
    known.configure([Named("r1", 1, ("1.1.1.1",))])
    known.offer(record("lan"), PROOF, Source.MDNS, NOW, seen=())
    known.offer(record("c"), PROOF, Source.LOOKUP, NOW)
    known.offer(record("d"), PROOF, Source.LOOKUP, NOW + 5)
    with pytest.raises(TableFull, match="no room for e"):
        known.offer(record("e"), PROOF, Source.LOOKUP, NOW)
    with pytest.raises(TableFull):
        known.offer(record("e"), PROOF, Source.CACHE, NOW)
    known.offer(record("d", 2), PROOF, Source.LOOKUP, NOW + 5)  # those who are in may renew
    known.offer(record("lan2"), PROOF, Source.MDNS, NOW + 5)  # c, the oldest looked-up one, makes room
    assert set(known.store) == {"r1", "lan", "d", "lan2"}
    known.configure([Named("r1", 1), Named("r2", 2)])
    assert set(known.store) == {"r1", "r2", "lan", "d", "lan2"}
    known.withdraw("d", Source.LOOKUP)
    known.configure([Named("r1", 1)])
    known.offer(record("e"), PROOF, Source.LOOKUP, NOW + 5)  # d is only remembered
    assert set(known.store) == {"r1", "lan", "lan2", "e"}
    known.offer(record("lan3"), PROOF, Source.MDNS, NOW + 5)
    with pytest.raises(TableFull):
        known.offer(record("lan4"), PROOF, Source.MDNS, NOW + 5)


def test_an_unchanged_record_wakes_nobody() -> None:
    known = registry()
    known.offer(record(), PROOF, Source.LOOKUP, NOW)
    before = known.store.revision
    known.offer(record(), PROOF, Source.LOOKUP, NOW + 10)
    assert known.store.revision == before
    known.offer(replace(record(revision=2), relay=RelayRole(configured=True)), PROOF, Source.LOOKUP, NOW + 10)
    assert known.store.revision == before + 1


def test_nobody_remembers_whom_only_others_wanted() -> None:
    known = registry()
    for name in "cd":
        known.offer(record(name), PROOF, Source.LOOKUP, NOW, wanted=False)
    known.want("d")
    known.expire(NOW + 600)
    assert known.entry("c") is None and peer(known, "d").sources == (Source.CACHE,)
    for name in "de":
        known.offer(record(name, 2, NOW + 600), PROOF, Source.LOOKUP, NOW + 600, wanted=False)
        known.dismiss(name)
    assert known.entry("e") is None and peer(known, "d").sources == (Source.LOOKUP,)
