"""Connections that have not yet said who they are."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address


def source_of(ip: str) -> str:
    """Who is counted together: an IPv4 address, or the /64 that one IPv6 host owns."""
    address = ip_address(ip.partition("%")[0])
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> 64 << 64)) + "/64"
    return str(address)


class HalfOpen:
    """Bounded by `limit` in all and `per_source` from one source.

    When there is no room, the oldest of the source that has most of them yields, not the newcomer: a flood pushes
    itself out, and an honest connection, which needs a round trip or two, gets through however busy both ends are.
    """

    def __init__(self, limit: int, per_source: int, timeout: float) -> None:
        self._limit = limit
        self._per_source = per_source
        self._timeout = timeout
        self._all: dict[int, tuple[str, float]] = {}  # in order of age
        self._of_source: dict[str, dict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def adjust(self, limit: int, per_source: int) -> list[int]:
        """Other bounds; returns the connections that must be closed for them, the oldest of each source and of all."""
        self._limit, self._per_source = limit, per_source
        crowding = [key for mine in self._of_source.values() for key in list(mine)[: max(0, len(mine) - per_source)]]
        for key in crowding:
            self.leave(key)
        surplus = list(self._all)[: max(0, len(self._all) - limit)]
        for key in surplus:
            self.leave(key)
        return crowding + surplus

    def enter(self, key: int, source: str, now: float) -> int | None:
        """A connection came; returns the one that must be closed for it."""
        yielded: int | None = None
        mine = self._of_source.get(source, {})
        if len(mine) >= self._per_source:
            yielded = next(iter(mine))
        elif len(self._all) >= self._limit:
            crowd = max(self._of_source.values(), key=len)
            yielded = next(iter(crowd))
        if yielded is not None:
            self.leave(yielded)
        self._all[key] = (source, now + self._timeout)
        self._of_source.setdefault(source, {})[key] = None
        return yielded

    def leave(self, key: int) -> None:
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

    def expire(self, now: float) -> list[int]:
        """Connections whose time is over; they are forgotten here."""
        over = []
        for key, (_, deadline) in self._all.items():
            if deadline > now:
                break
            over.append(key)
        for key in over:
            self.leave(key)
        return over
