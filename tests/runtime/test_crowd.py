"""Connections of strangers, counted by where they come from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.core.crowd import Crowd, source_of


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(("enter", "leave", "expire"))), max_size=200))
def test_a_crowd_is_bounded_and_lets_every_newcomer_in(events: list[tuple[str, str]]) -> None:
    table = Crowd[int](6, 3, 5.0)
    live: dict[int, str] = {}
    now, key = 0.0, 0
    for source, event in events:
        now += 0.5
        if event == "enter":
            key += 1
            yielded = table.enter(key, source, now)
            of = {s: [k for k, other in live.items() if other == s] for s in live.values()}
            if len(of.get(source, ())) == 3:
                assert yielded == of[source][0], "the source's oldest yields"
            elif len(live) == 6:
                most = max(map(len, of.values()))
                assert yielded in [keys[0] for keys in of.values() if len(keys) == most], "that of a source with most"
            else:
                assert yielded is None
            live.pop(yielded or 0, None)
            live[key] = source
        elif event == "leave" and live:
            table.leave(live.popitem()[0])
        else:
            for over in table.expire(now):
                del live[over]
        assert len(table) == len(live) <= 6
        assert all(list(live.values()).count(s) <= 3 for s in "abcdef")


def test_it_expires_in_order() -> None:
    table = Crowd[int](10, 10, 5.0)
    for key in range(3):
        table.enter(key, "s", float(key))
    assert table.next_expiry == 5.0
    assert table.expire(6.5) == [0, 1]
    table.leave(2)
    assert table.next_expiry is None


@given(
    st.lists(st.sampled_from("abcd"), max_size=30),
    st.tuples(st.integers(1, 12), st.integers(1, 6)),
    st.tuples(st.integers(1, 12), st.integers(1, 6)),
)
def test_its_bounds_hold_from_the_moment_they_change(
    sources: list[str], first: tuple[int, int], second: tuple[int, int]
) -> None:
    table, live = Crowd[int](*first, 5.0), dict[int, str]()
    for key, source in enumerate(sources):
        yielded = table.enter(key, source, 0.0)
        live[key] = source
        live.pop(-1 if yielded is None else yielded, None)
    before = list(live)
    for key in table.adjust(*second):
        del live[key]
    limit, per_source = second
    assert len(table) == len(live) <= limit
    assert all(list(live.values()).count(it) <= per_source for it in "abcd")
    # Nobody has to go for nothing, and the young stay.
    if len(before) <= limit and per_source >= first[1]:
        assert list(live) == before
    for key in live:
        table.leave(key)
    assert table.next_expiry is None


def test_who_was_active_yields_later() -> None:
    table = Crowd[int](3)
    for key in range(3):
        table.enter(key, "s")
    table.touch(0)
    table.touch(7)  # none of them
    assert list(table) == [1, 2, 0]
    assert table.enter(3, "s") == 1


@pytest.mark.parametrize(
    ("ip", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_source(ip: str, source: str) -> None:
    assert source_of(ip) == source
