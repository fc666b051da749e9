"""Who may be reached through this relay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Reservation:
    """One holder's permission. `conn` is its control connection; times in seconds."""

    conn: int
    peer: str
    expires_at: float


class Reservations:
    """All reservations, each tied to the control connection that asked for it.

    Two connections may hold the same name: a node that came back while its former self is not yet known to be
    dead, or two machines with one identity. Both are accepted and the last that came is active; the older is left
    to die. Kicking it would make the two reconnect against each other for ever (DERP). A refresh does not make
    the older active again, so that live duplicates do not flap.

    Bounds: `limit` names; the caller bounds the connections of each name.
    """

    def __init__(self, limit: int, ttl: float) -> None:
        self.limit = limit
        self._ttl = ttl
        # Every reservation lives equally long from its last refresh, so insertion order is expiry order.
        self._by_conn: dict[int, Reservation] = {}
        self._by_peer: dict[str, list[int]] = {}  # oldest holder first; the last is active

    def __len__(self) -> int:
        """Names reserved."""
        return len(self._by_peer)

    def __iter__(self) -> Iterator[Reservation]:
        """The active reservation of every name."""
        return (self._by_conn[conns[-1]] for conns in self._by_peer.values())

    @property
    def holders(self) -> list[int]:
        """Connections that hold a reservation, active or not."""
        return list(self._by_conn)

    def has(self, peer: str) -> bool:
        return peer in self._by_peer

    @property
    def full(self) -> bool:
        """No room for another name."""
        return len(self._by_peer) >= self.limit

    def grant(self, conn: int, peer: str, now: float) -> Reservation:
        """Reserve or refresh. The caller has checked that there is room (`full`, `has`)."""
        old = self._by_conn.pop(conn, None)
        if old is None:
            self._by_peer.setdefault(peer, []).append(conn)
        reservation = self._by_conn[conn] = Reservation(conn, peer, now + self._ttl)
        return reservation

    def active(self, peer: str) -> int | None:
        """Connection on which `peer` is told of callers."""
        conns = self._by_peer.get(peer)
        return conns[-1] if conns else None

    def drop(self, conn: int) -> Reservation | None:
        """The connection is gone, or its time is over. An older holder of the name becomes active."""
        reservation = self._by_conn.pop(conn, None)
        if reservation is not None:
            conns = self._by_peer[reservation.peer]
            conns.remove(conn)
            if not conns:
                del self._by_peer[reservation.peer]
        return reservation

    @property
    def next_expiry(self) -> float | None:
        return next(iter(self._by_conn.values())).expires_at if self._by_conn else None

    def expire(self, now: float) -> list[Reservation]:
        """Drop and return those whose time is over."""
        over = []
        while (expiry := self.next_expiry) is not None and expiry <= now:
            reservation = self.drop(next(iter(self._by_conn)))
            assert reservation is not None
            over.append(reservation)
        return over
