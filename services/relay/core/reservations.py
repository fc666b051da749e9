"""Who may be reached through this relay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Reservation:
    """One holder's permission. `conn` is its control connection; `ttl`: how long it was granted for; times in seconds."""

    conn: int
    peer: str
    ttl: float
    expires_at: float


class Reservations:
    """All reservations, each tied to the control connection that asked for it.

    Two connections may hold the same name: a node that came back while its former self is not yet known to be
    dead, or two machines with one identity. Both are accepted and the last that came is active; the older is left
    to die. Kicking it would make the two reconnect against each other for ever (DERP). A refresh does not make
    the older active again, so that live duplicates do not flap.

    Bounds: `limit` names; the caller bounds the connections of each name. `ttl`: of what is granted from now on; what
    was granted before lasts as long as its holder was told.
    """

    def __init__(self, limit: int, ttl: float) -> None:
        self.limit = limit
        self.ttl = ttl
        self._by_conn: dict[int, Reservation] = {}
        # Those of one time to live expire in the order in which they were granted: one queue for each, none empty.
        self._queues: dict[float, dict[int, Reservation]] = {}
        self._by_peer: dict[str, list[int]] = {}  # oldest holder first; the last is active

    def __len__(self) -> int:
        """Names reserved."""
        return len(self._by_peer)

    def __iter__(self) -> Iterator[Reservation]:
        """The active reservation of every name."""
        return (self._by_conn[conns[-1]] for conns in self._by_peer.values())

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
        else:
            self._leave_queue(old)
        reservation = self._by_conn[conn] = Reservation(conn, peer, self.ttl, now + self.ttl)
        self._queues.setdefault(self.ttl, {})[conn] = reservation
        return reservation

    def active(self, peer: str) -> int | None:
        """Connection on which `peer` is told of callers."""
        conns = self._by_peer.get(peer)
        return conns[-1] if conns else None

    def drop(self, conn: int) -> Reservation | None:
        """The connection is gone, or its time is over. An older holder of the name becomes active."""
        reservation = self._by_conn.pop(conn, None)
        if reservation is not None:
            self._leave_queue(reservation)
            conns = self._by_peer[reservation.peer]
            conns.remove(conn)
            if not conns:
                del self._by_peer[reservation.peer]
        return reservation

    @property
    def next_expiry(self) -> float | None:
        first = self._first
        return first.expires_at if first is not None else None

    def expire(self, now: float) -> list[Reservation]:
        """Drop and return those whose time is over."""
        over = []
        while (first := self._first) is not None and first.expires_at <= now:
            self.drop(first.conn)
            over.append(first)
        return over

    @property
    def _first(self) -> Reservation | None:
        """The next to expire."""
        heads = (next(iter(queue.values())) for queue in self._queues.values())
        return min(heads, key=lambda it: it.expires_at, default=None)

    def _leave_queue(self, reservation: Reservation) -> None:
        queue = self._queues[reservation.ttl]
        del queue[reservation.conn]
        if not queue:
            del self._queues[reservation.ttl]
