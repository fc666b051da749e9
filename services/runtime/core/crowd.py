"""Connections of strangers on a public port, counted by where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address
from math import inf
from typing import Generic, TypeVar

K = TypeVar("K")


def source_of(ip: str) -> str:
    """Who is counted together: an IPv4 address, or the /64 that one IPv6 host owns. What is no address is itself."""
    try:
        address = ip_address(ip.partition("%")[0])
    except ValueError:
        return ip
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> 64 << 64)) + "/64"
    return str(address)


class Crowd(Generic[K]):
    """Bounded by `limit` in all and `per_source` from one source; `timeout`: seconds that each may stay.

    When there is no room, the oldest of the source that has most of them yields, not the newcomer: a flood pushes
    itself out, and an honest connection, which needs a round trip or two, gets through however busy both ends are.
    """

    def __init__(self, limit: int, per_source: int | None = None, timeout: float = inf) -> None:
        self._limit = limit
        self._per_source = limit if per_source is None else per_source
        self._timeout = timeout
        self._all: dict[K, tuple[str, float]] = {}  # in order of age
        self._of_source: dict[str, dict[K, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[K]:
        """The oldest first."""
        return iter(self._all)

    def adjust(self, limit: int, per_source: int) -> list[K]:
        """Other bounds; returns the connections that must be closed for them, the oldest of each source and of all."""
        self._limit, self._per_source = limit, per_source
        crowding = [key for mine in self._of_source.values() for key in list(mine)[: max(0, len(mine) - per_source)]]
        for key in crowding:
            self.leave(key)
        surplus = list(self._all)[: max(0, len(self._all) - limit)]
        for key in surplus:
            self.leave(key)
        return crowding + surplus

    def enter(self, key: K, source: str, now: float = 0.0) -> K | None:
        """A connection came; returns the one that must be closed for it."""
        yielded: K | None = None
        mine = self._of_source.get(source, {})
        if len(mine) >= self._per_source:
            yielded = next(iter(mine))
        elif len(self._all) >= self._limit:
            crowd = max(self._of_source.values(), key=len)
            yielded = next(iter(crowd))
        if yielded is not None:
            self.leave(yielded)
        self._put(key, source, now + self._timeout)
        return yielded

    def touch(self, key: K) -> None:
        """It is the youngest now, if it is one of them."""
        if key in self._all:
            source, deadline = self._all[key]
            self.leave(key)
            self._put(key, source, deadline)

    def _put(self, key: K, source: str, deadline: float) -> None:
        self._all[key] = (source, deadline)
        self._of_source.setdefault(source, {})[key] = None

    def leave(self, key: K) -> None:
        """It said who it is, or is gone."""
        source, _ = self._all.pop(key, ("", 0.0))
        mine = self._of_source.get(source)
        if mine is not None:
            mine.pop(key, None)
            if not mine:
                del self._of_source[source]

    @property
    def next_expiry(self) -> float | None:
        return next(iter(self._all.values()))[1] if self._all else None

    def expire(self, now: float) -> list[K]:
        """Connections whose time is over; they are forgotten here."""
        over = []
        for key, (_, deadline) in self._all.items():
            if deadline > now:
                break
            over.append(key)
        for key in over:
            self.leave(key)
        return over
