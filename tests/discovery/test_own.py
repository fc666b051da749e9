"""The own record: what goes in, in which order, and how soon others are told."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.discovery.core.model import Address, AddressSource, RelayRole, Reservation
from services.discovery.core.own import (
    DRIFT,
    LIFETIME,
    MAX_ADDRESSES,
    MAX_RESERVATIONS,
    OwnRecord,
    RelayReport,
    TunnelReport,
    due_in,
)

NOW = 1_800_000_000.0


def own(last_revision: int = 0) -> OwnRecord:
    return OwnRecord("default", "a", "i1", tunnel_port=20006, discovery_port=20008, last_revision=last_revision)


def test_addresses_are_advertised_then_interface_then_observed() -> None:
    mine = own()
    mine.tunnel = TunnelReport(
        20006,
        observed=(
            Address("198.51.100.7", AddressSource.OBSERVED, 4711),
            Address("10.0.0.5", AddressSource.OBSERVED, 20006),
            Address("203.0.113.1", AddressSource.OBSERVED, 20006),
        ),
    )
    mine.set_interfaces(("10.0.0.5", "203.0.113.1"))
    mine.advertise(("203.0.113.1",))
    assert [(a.ip, a.source, a.tunnel_port) for a in mine.compose(NOW).addresses] == [
        ("203.0.113.1", AddressSource.ADVERTISED, 0),
        ("10.0.0.5", AddressSource.INTERFACE, 0),
        ("198.51.100.7", AddressSource.OBSERVED, 4711),
    ]


def test_mapped_ports_are_apart_from_observed_ones() -> None:
    mine = own()
    mine.tunnel = TunnelReport(
        20006,
        observed=(Address("198.51.100.7", AddressSource.OBSERVED, 4711),),
        mapped=(Address("198.51.100.7", AddressSource.MAPPED, 20006),),
    )
    assert [(a.ip, a.source, a.tunnel_port) for a in mine.compose(NOW).addresses] == [
        ("198.51.100.7", AddressSource.MAPPED, 0),
        ("198.51.100.7", AddressSource.OBSERVED, 4711),
    ]
    # Where both are the same, it is the surer one that is told.
    mine.tunnel = TunnelReport(
        20006,
        observed=(Address("198.51.100.7", AddressSource.OBSERVED, 20006),),
        mapped=(Address("198.51.100.7", AddressSource.MAPPED, 20006),),
    )
    assert [a.source for a in mine.compose(NOW).addresses] == [AddressSource.MAPPED]


def test_lists_are_bounded() -> None:
    mine = own()
    mine.set_interfaces(tuple(f"10.0.0.{i}" for i in range(200)))
    mine.tunnel = TunnelReport(1, tuple(Reservation(f"r{i}") for i in range(99)))
    composed = mine.compose(NOW)
    assert (len(composed.addresses), len(composed.reservations)) == (MAX_ADDRESSES, MAX_RESERVATIONS)


def test_before_any_report_the_configuration_speaks() -> None:
    composed = own().compose(NOW)
    assert (composed.tunnel_port, composed.relay_port, composed.discovery_port) == (20006, 0, 20008)
    assert composed.relay is None and composed.reservations == ()
    assert (composed.issued_at, composed.expires_at) == (NOW, NOW + LIFETIME)


def test_a_report_replaces_the_former_one() -> None:
    mine = own()
    mine.tunnel = TunnelReport(0, (Reservation("r1", 0.02),))
    mine.relay = RelayReport(30007, RelayRole(configured=True))
    first = mine.compose(NOW)
    assert (first.tunnel_port, first.relay_port, first.relay) == (0, 30007, RelayRole(configured=True))
    assert not mine.dirty
    mine.relay = RelayReport(30007, None)
    assert mine.dirty
    assert (mine.compose(NOW).relay, mine.current and mine.current.relay_port) == (None, 0)


@given(st.lists(st.floats(0, 4e9), min_size=2, max_size=30), st.integers(0, 1 << 42))
def test_revisions_grow_whatever_the_clock_does(clock: list[float], last: int) -> None:
    mine = own(last)
    revisions = [mine.compose(now).revision for now in clock]
    assert revisions == sorted(set(revisions)) and revisions[0] > last
    assert revisions[0] == max(int(clock[0] * 1000), last + 1)
    restarted = own(mine.last_revision)
    assert restarted.compose(0.0).revision > revisions[-1]
    restarted.outrun(1 << 43)
    assert restarted.dirty
    assert restarted.compose(0.0).revision == (1 << 43) + 1


def test_what_changes_the_way_to_a_node_is_told_at_once_and_drift_now_and_then() -> None:
    mine = own()
    mine.relay = RelayReport(20007, RelayRole(True, 500, 5))
    mine.tunnel = TunnelReport(20006, (Reservation("r1", 0.020),))
    told = mine.compose(NOW)
    assert due_in(told, told, 0.0) == LIFETIME / 2
    assert due_in(told, told, LIFETIME) == 0.0
    mine.tunnel = TunnelReport(20006, (Reservation("r1", 0.021),))
    mine.relay = RelayReport(20007, RelayRole(True, 560, 6))
    drifted = mine.compose(NOW)
    assert due_in(told, drifted, 0.0) == DRIFT
    assert due_in(told, drifted, DRIFT) == 0.0
    role = RelayRole(True, 500, 5)
    for change in (
        {"addresses": (Address("10.0.0.1"),)},
        {"reservations": (Reservation("r2", 0.020),)},
        {"reservations": ()},
        {"relay": None},
        {"relay": replace(role, draining=True)},
        {"relay": replace(role, load_permille=600)},
        {"tunnel_port": 0},
    ):
        assert due_in(told, replace(told, revision=told.revision + 1, **change), 0.0) == 0.0, change  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [("r1", "r2"), ("r2", "r1")])
def test_the_order_of_reservations_is_part_of_the_way(order: tuple[str, str]) -> None:
    mine = own()
    mine.tunnel = TunnelReport(1, (Reservation("r1"), Reservation("r2")))
    told = mine.compose(NOW)
    mine.tunnel = TunnelReport(1, tuple(map(Reservation, order)))
    assert (due_in(told, mine.compose(NOW), 1.0) == 0.0) == (order == ("r2", "r1"))
