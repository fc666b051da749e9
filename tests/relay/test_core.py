"""The small decisions: fairness, greetings, role, load, reports."""

from __future__ import annotations

import errno
import functools
import random
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relay import config
from services.relay.core import drain, load, role
from services.relay.core.confidence import Reachability, Sample
from services.relay.core.fairness import Account, Accounts
from services.relay.core.greeting import (
    GREETING_LENGTH,
    LEG_MAGIC,
    PROOF_LENGTH,
    PROOF_MAGIC,
    Kind,
    classify,
    proof_token,
    token,
)
from services.relay.core.report import Report
from services.relay.core.reservations import Reservations

# --- fairness ------------------------------------------------------------------------------------------------------


def run(accounts: Accounts, flows: list[tuple[str, Account, Account]], rounds: int, seed: int) -> dict[str, int]:
    """Serve whoever's turn it is; returns bytes by caller."""
    rng = random.Random(seed)
    got: dict[str, int] = {}
    for _ in range(rounds):
        caller, one, other = min(flows, key=lambda flow: accounts.turn(flow[1], flow[2]))
        amount = rng.randint(1, 262144)
        accounts.charge(one, other, amount, lambda: 0.0)
        got[caller] = got.get(caller, 0) + amount
    return got


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0))
def test_peers_get_equal_bytes_however_many_circuits_they_have(mine: int, yours: int, seed: int) -> None:
    accounts = Accounts()
    flows = [("a", accounts.open("a", 0), accounts.open(f"x{n}", 0)) for n in range(mine)]
    flows += [("b", accounts.open("b", 0), accounts.open(f"y{n}", 0)) for n in range(yours)]
    got = run(accounts, flows, 300, seed)
    assert abs(got["a"] - got["b"]) <= 2 * 262144


def test_silence_earns_no_credit() -> None:
    accounts = Accounts()
    busy = ("a", accounts.open("a", 0), accounts.open("x", 0))
    idle = ("b", accounts.open("b", 0), accounts.open("y", 0))
    run(accounts, [busy], 1000, 1)
    got = run(accounts, [busy, idle], 200, 2)
    assert abs(got["a"] - got["b"]) <= 3 * 262144


def test_accounts_are_forgotten_with_their_last_circuit() -> None:
    accounts = Accounts(1000)
    first, second = accounts.open("a", 0), accounts.open("a", 0)
    assert first is second
    accounts.close("a")
    assert len(accounts) == 1
    accounts.close("a")
    assert len(accounts) == 0


@given(st.integers(1, 10**9), st.integers(0))
def test_rate_limit_holds_for_each_peer(rate: int, seed: int) -> None:
    rng = random.Random(seed)
    accounts = Accounts(rate)
    one, others = accounts.open("a", 0.0), [accounts.open(f"x{n}", 0.0) for n in range(4)]
    now, moved = 0.0, 0
    for _ in range(200):
        other = rng.choice(others)
        if pause := accounts.pause(one, other, now):
            now += pause
            assert accounts.pause(one, other, now + 1e-6 * now + 1e-9) == 0
        amount = min(accounts.allowance(one, other, now), 1 << 20)
        accounts.charge(one, other, amount, functools.partial(float, now))
        moved += amount
    assert moved <= max(rate * 0.25, 262144) + rate * now * (1 + 1e-6) + 200


# --- reservations --------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.sampled_from(("grant", "ttl", "drop", "expire")), st.integers(0, 4), st.floats(0, 4)), max_size=60
    )
)
def test_a_reservation_lasts_as_long_as_it_was_granted_for(events: list[tuple[str, int, float]]) -> None:
    table, ends, now = Reservations(100, 3.0), dict[int, float](), 0.0
    for event, number, seconds in events:
        now += seconds
        if event == "ttl":
            table.ttl = float(number + 1)
        elif event == "drop":
            table.drop(number)
            ends.pop(number, None)
        elif event == "grant":
            assert table.grant(number, f"p{number % 3}", now).expires_at == now + table.ttl
            ends[number] = now + table.ttl
        else:
            over = {it.conn for it in table.expire(now)}
            assert over == {conn for conn, end in ends.items() if end <= now}
            ends = {conn: end for conn, end in ends.items() if end > now}
        assert table.next_expiry == min(ends.values(), default=None)
        assert set(table._by_conn) == set(ends)
        assert len(table) == len({f"p{conn % 3}" for conn in ends})


# --- greetings -----------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=GREETING_LENGTH))
def test_any_first_bytes_are_classified_and_never_change_their_kind(head: bytes) -> None:
    kinds = [classify(head[:n]) for n in range(1, len(head) + 1)]
    settled = [kind for kind in kinds if kind is not Kind.MORE]
    if head[0] == 0x16:
        assert set(kinds) == {Kind.CONTROL}
    elif LEG_MAGIC.startswith(head[:4]) or head.startswith(LEG_MAGIC):
        assert len(settled) == (1 if len(head) == GREETING_LENGTH else 0)
    elif PROOF_MAGIC.startswith(head[:4]):
        assert set(settled) == ({Kind.PROOF} if len(head) >= PROOF_LENGTH else set())
    else:
        assert settled[0] is Kind.JUNK


def test_a_leg_is_known_at_its_last_byte() -> None:
    head = LEG_MAGIC + bytes(range(32))
    assert [classify(head[:n]) for n in range(len(head))] == [Kind.MORE] * len(head)
    assert classify(head) is Kind.LEG
    assert token(head) == bytes(range(32))


def test_a_dial_back_is_known_at_its_last_byte() -> None:
    head = PROOF_MAGIC + bytes(range(16))
    assert [classify(head[:n]) for n in range(len(head))] == [Kind.MORE] * len(head)
    assert classify(head) is classify(head + b"more") is Kind.PROOF
    assert proof_token(head + b"more") == bytes(range(16))


# --- role, load, drain, reports --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "nodes", "active", "configured", "condition"),
    [
        ("auto", [("r", ["192.0.2.1"])], True, True, "Configured"),
        ("auto", [("r", ["relay.example"])], True, True, "Configured"),
        ("auto", [("r", ["0.0.0.0", "2001:db8::1"])], True, True, "Configured"),
        ("auto", [("r", ["192.168.1.5", "fd00::5"])], True, True, "LanOnly"),
        ("auto", [("r", ["192.168.1.5", "192.0.2.1"])], True, True, "Configured"),
        ("auto", [("r", [])], False, True, "NoUsableAddress"),
        ("auto", [("r", ["0.0.0.0", "224.0.0.1"])], False, True, "NoUsableAddress"),
        ("auto", [("x", ["192.0.2.1"])], False, False, "Unproven"),
        ("auto", [], False, False, "Unproven"),
        ("on", [], True, False, "Forced"),
        ("on", [("r", [])], True, True, "Forced"),
        ("off", [("r", ["192.0.2.1"])], False, True, "Disabled"),
    ],
)
def test_role(mode: str, nodes: list[tuple[str, list[str]]], active: bool, configured: bool, condition: str) -> None:
    decided = role.decide(mode, "r", nodes)
    assert (decided.active, decided.configured, decided.condition) == (active, configured, condition)
    assert decided.capable is active
    assert decided.reason


def test_role_says_which_address_is_no_good() -> None:
    assert "224.0.0.1" in role.decide("auto", "r", [("r", ["224.0.0.1"])]).reason


def test_a_relay_with_private_addresses_says_that_nobody_else_reaches_it() -> None:
    """It stands beside Reachable=False, and would look like a contradiction."""
    found = Reachability()
    for number in range(3):
        found.add("198.51.100.7", Sample(f"v{number}", False, "no answer"), float(number))
    decided = role.decide("auto", "r", [("r", ["192.168.1.5"])], found, own=lambda it: it == "192.168.1.5")
    assert decided.active and decided.condition == "LanOnly" and not decided.reachable.status
    assert "for its LAN only: 192.168.1.5 is private (198.51.100.7 cannot be reached" in decided.reason


def test_load() -> None:
    assert load.permille([]) == 0
    assert load.permille([(1, 4), (1, 2), (5, 0)]) == 500
    assert load.permille([(9, 4)]) == 1000


def test_busy_share_follows_what_was_measured() -> None:
    busy = load.BusyShare(0.0, span=10.0)
    assert busy.update(0.1, 0.1) == 0.0
    for second in range(1, 200):
        busy.update(second * 0.5, float(second))
    assert 0.45 < busy.share <= 0.5
    for second in range(200, 400):
        busy.update(100.0, float(second))
    assert busy.share < 0.01


@given(st.integers(0, 10_000), st.floats(0, 600))
def test_spread_leaves_time_to_move(holders: int, deadline: float) -> None:
    assert 0 <= drain.spread(holders, 0, deadline) <= deadline / 3


def test_the_more_have_to_move_the_longer_they_are_spread() -> None:
    """FAILURES 10: the relay that stops smears its clients, for it alone knows how many they are."""
    assert drain.spread(1, 0, 600.0) < 0.1
    assert drain.spread(500, 500, 600.0) >= 10.0


def test_a_drain_is_shortened_never_extended() -> None:
    under_way = drain.Drain(100.0)
    assert not under_way.shorten(200.0)
    assert under_way.shorten(50.0)
    assert not under_way.over(1, 49.0)
    assert under_way.over(1, 50.0)
    assert under_way.over(0, 0.0)


def test_what_is_worth_a_report() -> None:
    last = Report(True, True, load_permille=100, circuits=100)
    assert Report(True).worth(None)
    assert not last.worth(last)
    assert not Report(True, True, 120, 110).worth(last)
    assert Report(True, True, 150, 100).worth(last)
    assert Report(True, True, 100, 130).worth(last)
    assert Report(True, True, 100, 1).worth(Report(True, True, 100, 0))
    assert not Report(True, True, 500, 900).urgent(last)
    assert Report(True, True, 100, 100, draining=True).urgent(last)
    assert Report(False).urgent(last)


def test_an_ipv6_address_is_not_ours_where_the_kernel_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(family: int, kind: int) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    assert config._own("127.0.0.1") and not config._own("192.0.2.1")
    monkeypatch.setattr("services.relay.config.socket.socket", refuse)
    assert not config._own("2001:db8::1")
