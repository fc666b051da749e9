"""What a relay allows."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits in force. Times in seconds, sizes in bytes. What has no default here is set, and has one, in the
    configuration's schema."""

    max_reservations: int
    """Peers that may be reached through this relay."""
    max_circuits: int
    """Circuits open or being opened."""
    max_circuits_per_peer: int
    """Circuits in which one peer takes part, as caller or as callee."""
    max_bytes_per_second_per_peer: int
    """Bytes carried for one peer, both directions together; 0: no limit."""
    idle_timeout: float
    """A circuit without a byte for so long is closed. Tunnels ping an idle link every 15 s at the latest."""
    max_half_open: int
    """Connections to the public port that have not yet said who they are."""
    max_half_open_per_source: int
    """The same, from one IP (one /64 in IPv6)."""
    reservation_ttl: float
    """How long a reservation lasts without a refresh."""
    pairing_timeout: float = 10.0
    """Time for both legs of a circuit to arrive."""
    heartbeat_timeout: float = 45.0
    """A control connection that is silent for three heartbeats of 15 s is dead."""
    greeting_timeout: float = 5.0
    """Time for the first bytes, and for the whole TLS handshake with its greeting."""
    max_connections_per_peer: int = 4
    """Control connections of one name. More than one is normal for a moment: the node restarted and its former
    self is not yet known to be dead. The oldest yields."""
    max_messages_per_second: float = 50.0
    """Control messages read from one connection; a faster client is read more slowly, never refused."""
    max_messages_burst: int = 200
    """Control messages that may come at once."""

    @property
    def max_connections(self) -> int:
        """Control connections in all: every reservation, and as many that only call."""
        return 2 * self.max_reservations

    def fit(self, descriptors: int) -> Limits:
        """The same with no more of anything than `descriptors` (RLIMIT_NOFILE) can hold.

        64 are for the process itself. Who is not yet known gets at most an eighth of the others, and reservations with their
        control connections a quarter, so that circuits are left the larger part. A circuit needs two sockets, and a
        pipe of two ends each way while bytes are in flight.
        """
        room = max(0, descriptors - 64)
        half_open = max(1, min(self.max_half_open, room // 8))
        fitted = replace(
            self,
            max_reservations=max(1, min(self.max_reservations, room // 8)),
            max_half_open=half_open,
            max_half_open_per_source=min(self.max_half_open_per_source, half_open),
        )
        left = room - fitted.max_half_open - fitted.max_connections
        return replace(fitted, max_circuits=max(1, min(self.max_circuits, left // 6)))
