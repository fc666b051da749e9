"""This node's own record, merged from what the configuration, the interfaces and the other components say.

Some changes must be known at once (where the node can be reached), others only now and then (load, round
trips). `compose` makes the next version, and `due_in` says how soon it is worth telling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .model import Address, AddressSource, Record, RelayRole, Reservation

# Seconds a record is valid; it is renewed at half of that.
LIFETIME = 600.0
# Bounds of the lists in a record, so that it stays well under the size limit.
MAX_ADDRESSES = 32
MAX_RESERVATIONS = 16
# Seconds between two publications of mere drift (round trips, small moves of load).
DRIFT = 30.0
# Load moves all the time; a step of this size is worth telling, permille.
LOAD_STEP = 100


@dataclass(frozen=True, slots=True)
class TunnelReport:
    """What the tunnel contributes. `port` 0: it does not listen."""

    port: int = 0
    reservations: tuple[Reservation, ...] = ()
    observed: tuple[Address, ...] = ()
    mapped: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class RelayReport:
    """What the relay contributes. `role` None: it does not serve."""

    port: int = 0
    role: RelayRole | None = None


class OwnRecord:
    """The draft of the own record, and its last version."""

    def __init__(
        self,
        cluster: str,
        node_name: str,
        instance_id: str,
        *,
        tunnel_port: int,
        discovery_port: int,
        last_revision: int = 0,
    ) -> None:
        self.last_revision = last_revision
        self.tunnel: TunnelReport | None = None
        self.relay: RelayReport | None = None
        self._tunnel_port = tunnel_port
        self._advertised: tuple[str, ...] = ()
        self._interfaces: tuple[str, ...] = ()
        self._base = Record(node_name, cluster, instance_id=instance_id, discovery_port=discovery_port)
        self.current: Record | None = None

    def advertise(self, ips: tuple[str, ...]) -> None:
        """Addresses that the configuration gives this node, best first."""
        self._advertised = ips

    def set_interfaces(self, ips: tuple[str, ...]) -> None:
        """Addresses of the node's interfaces, best first."""
        self._interfaces = ips

    def draft(self) -> Record:
        """What the next version would say, without revision and times."""
        tunnel = self.tunnel or TunnelReport(self._tunnel_port)
        role = self.relay.role if self.relay is not None else None
        return replace(
            self._base,
            addresses=self._addresses(tunnel),
            tunnel_port=tunnel.port,
            relay_port=self.relay.port if self.relay is not None and role is not None else 0,
            relay=role,
            reservations=tunnel.reservations[:MAX_RESERVATIONS],
        )

    @property
    def dirty(self) -> bool:
        """The last version differs from the draft in anything."""
        return self.current is None or self.draft() != self._content(self.current)

    def compose(self, now: float) -> Record:
        """The next version, signed at `now`. Its revision is greater than any before, whatever the clock does."""
        self.last_revision = max(int(now * 1000), self.last_revision + 1)
        self.current = replace(self.draft(), revision=self.last_revision, issued_at=now, expires_at=now + LIFETIME)
        return self.current

    def outrun(self, revision: int) -> None:
        """Somebody holds a record in our name with this revision; the next version will be newer."""
        if revision >= self.last_revision:
            self.last_revision = revision
            self.current = None

    def _content(self, record: Record) -> Record:
        return replace(record, revision=0, issued_at=0.0, expires_at=0.0)

    def _addresses(self, tunnel: TunnelReport) -> tuple[Address, ...]:
        merged: dict[tuple[str, int], Address] = {}
        for ip in self._advertised:
            merged.setdefault((ip, 0), Address(ip, AddressSource.ADVERTISED))
        for ip in self._interfaces:
            merged.setdefault((ip, 0), Address(ip, AddressSource.INTERFACE))
        # A mapped port is there for everybody, an observed one perhaps for those who have been talked to only.
        for source, addresses in ((AddressSource.MAPPED, tunnel.mapped), (AddressSource.OBSERVED, tunnel.observed)):
            for address in addresses:
                port = 0 if address.tunnel_port == tunnel.port else address.tunnel_port
                merged.setdefault((address.ip, port), Address(address.ip, source, port))
        return tuple(merged.values())[:MAX_ADDRESSES]


def due_in(published: Record, current: Record, age: float) -> float:
    """Seconds until readers of `published`, told `age` seconds ago, are to be told of `current`; 0: now.

    At once when they would act differently: reachability or the relay role changed, or its load by LOAD_STEP.
    Drift can wait, and without any change the record is renewed at half of its life.
    """
    if _essence(published) != _essence(current) or abs(_load(published) - _load(current)) >= LOAD_STEP:
        return 0.0
    return max(0.0, (DRIFT if published.revision != current.revision else LIFETIME / 2) - age)


def _essence(record: Record) -> tuple[object, ...]:
    role = record.relay
    return (
        record.addresses,
        record.tunnel_port,
        record.relay_port,
        record.discovery_port,
        tuple(reservation.relay for reservation in record.reservations),
        (role.configured, role.draining, role.proven) if role is not None else None,
    )


def _load(record: Record) -> int:
    return record.relay.load_permille if record.relay is not None else 0
