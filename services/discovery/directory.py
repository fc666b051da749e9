"""All that this node knows, in one place: the registry, its own record, the services, and the state to show.

No tasks and no IO here; sources bring what they learn, servicers and sources read, bells tell of changes.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable

from services.runtime.core.private import private
from services.runtime.identity import Identity

from .bell import Bell
from .config import Settings
from .core.backoff import Backoff
from .core.board import Board
from .core.contacts import MAX_ENDPOINTS, Contact, Endpoint
from .core.errors import DiscoveryError, Expired
from .core.gateways import GatewayObject
from .core.memory import Remembered
from .core.model import Peer, Record, Signed, Source
from .core.own import LIFETIME, OwnRecord, RelayReport, TunnelReport
from .core.registry import MAX_PEERS, Registry, lapse_of
from .core.service import Service
from .core.store import Store, origin_at
from .interfaces import Interface
from .wire import seal, unseal

# Peers known at once up to which published records are let in.
MAX_VOLUNTEERS = MAX_PEERS * 3 // 4


class Directory:
    """What the parts of discovery share. `wall` is the clock of records: seconds since the Unix epoch."""

    def __init__(
        self, settings: Settings, identity: Identity, log: logging.Logger, wall: Callable[[], float] = time.time
    ) -> None:
        self.settings = settings
        self.identity = identity
        self.log = log
        self.wall = wall
        self.board = Board()
        self.peers_bell = Bell()
        self.services_bell = Bell()
        self.gateways_bell = Bell()
        # The own record changed, or it may be time to publish it.
        self.own_bell = Bell()
        # The network or the clock changed: what failed a moment ago may work now.
        self.wake_bell = Bell()
        origin = origin_at(wall())
        self.peers: Store[Peer] = Store(origin, on_change=self.peers_bell.ring)
        self.services: Store[Service] = Store(origin, on_change=self.services_bell.ring)
        self.gateways: Store[GatewayObject] = Store(origin, on_change=self.gateways_bell.ring)
        self.registry = Registry(settings.node_name, self.peers)
        self.instance_id = secrets.token_hex(8)
        self.own = OwnRecord(
            settings.cluster,
            settings.node_name,
            self.instance_id,
            tunnel_port=settings.tunnel_port,
            discovery_port=settings.listen_port,
        )
        self.interfaces: tuple[Interface, ...] = ()
        # Of the DHT, as they are kept on disk.
        self.servers: tuple[Remembered, ...] = ()
        self.watchers = 0
        # Set when discovery stops; watches then end in good order.
        self.closing = False
        # Events since the start by (what, result), for metrics.
        self.counts: Counter[tuple[str, str]] = Counter()
        self._signed: Signed | None = None
        self._doubled_at: float | None = None

    # The own record

    def signed(self, max_age: float = LIFETIME / 2) -> Signed:
        """The own record; a new version of it when the last one is out of date, or older than `max_age` seconds."""
        now = self.wall()
        current = self.own.current
        if (
            self._signed is None
            or current is None
            or self.own.dirty
            or not 0 <= now - current.issued_at <= max_age
            or self._signed.certificate != self.identity.certificate_der
        ):
            self._signed = seal(self.identity, self.own.compose(now))
        return self._signed

    def made(self, signed: Signed) -> bool:
        """Whether that is the own record, in its last version."""
        return signed == self._signed

    def record(self) -> Record:
        """What `signed` says."""
        self.signed()
        assert self.own.current is not None
        return self.own.current

    def report(self, report: TunnelReport | RelayReport) -> int:
        """A component says what it contributes. Returns the revision of the record that holds it."""
        if isinstance(report, TunnelReport):
            self.own.tunnel = report
            for reservation in report.reservations:
                self.registry.want(reservation.relay)
        else:
            self.own.relay = report
        return self.own_changed()

    def own_changed(self) -> int:
        """The own record may have changed: wakes those who publish it. Returns its revision."""
        dirty = self.own.dirty
        revision = self.record().revision
        if dirty:
            self.own_bell.ring()
        return revision

    def wake(self) -> None:
        """The network or the clock changed: everybody looks again, and no backoff from before counts."""
        self.wake_bell.ring()
        self.own_bell.ring()

    async def back_off(self, backoff: Backoff) -> None:
        """Waits before the next try. When the network changed the wait is over, and what it had grown to is forgotten."""
        woken = self.wake_bell.count
        if await self.wake_bell.wait(woken, backoff.next()) != woken:
            backoff.reset()

    def self_peer(self) -> Peer:
        """This node, as ResolvePeer shows it."""
        return Peer(self.record(), (Source.SELF,), verified=True)

    # Other nodes' records

    def take(
        self,
        signed: Signed,
        source: Source,
        *,
        expected: str = "",
        seen: tuple[str, ...] | None = None,
        wanted: bool = True,
    ) -> Record:
        """Verify a record and put it into the registry. Raises DiscoveryError. `wanted`: it was asked for.

        A record in our own name is returned but not stored.
        """
        record = unseal(self.identity, signed, expected)
        if record.node_name == self.settings.node_name:
            return record
        if self.registry.offer(record, signed, source, self.wall(), seen=seen, wanted=wanted):
            self.log.debug(
                "record taken", extra={"peer": record.node_name, "source": source.name, "revision": record.revision}
            )
        return record

    def check(self, signed: Signed, *, expected: str = "") -> Record:
        """Verify a record that is not (yet) for the registry. Raises DiscoveryError, also for one out of date."""
        record = unseal(self.identity, signed, expected)
        now = self.wall()
        if lapse_of(record, now) <= now:
            raise Expired(f"the record of {record.node_name} ended {now - record.expires_at:.0f} s ago")
        return record

    def volunteer(self, record: Record, signed: Signed) -> bool:
        """A verified record that its subject published here goes into the registry while there is room, and while it
        holds: names that nobody here asked for must not keep out those that somebody looks for."""
        if self.registry.entry(record.node_name) is None and len(self.registry) >= MAX_VOLUNTEERS:
            return False
        self.registry.offer(record, signed, Source.LOOKUP, self.wall(), wanted=False)
        return True

    def meet_double(self, record: Record, where: str) -> None:
        """Somebody else lives under our name: say so, and make our next version the newest."""
        ips = ", ".join(address.ip for address in record.addresses[:4]) or "no address"
        text = (
            f"duplicate identity: another node calls itself {record.node_name} ({ips}; instance {record.instance_id}, "
            f"seen {where}; this is instance {self.instance_id}): give each node its own nodeName and stateDir"
        )
        if self.board.warn("duplicate", text):
            self.log.warning(text)
        self._doubled_at = self.wall()
        self.own.outrun(record.revision)

    def forget_double(self) -> None:
        """Takes the warning back when the double has not been met for a lifetime: it would have published twice."""
        if self._doubled_at is not None and abs(self.wall() - self._doubled_at) > LIFETIME:
            self._doubled_at = None
            self.board.clear("duplicate")
            self.log.info("the other node of this name has not been met for long")

    # Where to publish and to ask

    def contacts(self) -> list[Contact]:
        """Discovery services that keep records: configured relays, relays by their own word, first contacts."""
        found = [Contact("", (endpoint,), configured=True) for endpoint in self.settings.bootstrap]
        for peer in self.peers.values():
            record = peer.record
            if record.discovery_port and (peer.relay_rank or (peer.verified and record.relay is not None)):
                found.append(contact_of(peer))
        return found

    def neighbours(self) -> list[Contact]:
        """Discovery services of nodes that mDNS shows."""
        known = (peer for peer in self.peers.values() if Source.MDNS in peer.sources)
        return [contact_of(peer) for peer in known if peer.record.discovery_port]

    def near(self, ip: str) -> bool:
        """Whether an address is of a private network that this node is in, and so means nothing elsewhere."""
        if self.settings.loopback:
            return False
        parsed = ipaddress.ip_address(ip)
        return (private(parsed) or parsed.is_link_local) and any(it.near(ip) for it in self.interfaces)

    def try_take(
        self, signed: Signed, source: Source, where: str, *, expected: str = "", wanted: bool = True
    ) -> Record | None:
        """`take`, for records that others volunteer: a bad one is a line in the log."""
        try:
            return self.take(signed, source, expected=expected, wanted=wanted)
        except DiscoveryError as error:
            self.counts["refused", error.reason] += 1
            self.log.warning("record refused", extra={"peer": where, "reason": error.reason, "error": error.message})
            return None


def contact_of(peer: Peer) -> Contact:
    """How to ask a peer's discovery service."""
    record = peer.record
    proven = record.relay.proven if record.relay is not None else ()
    ips = dict.fromkeys((*(address.ip for address in record.addresses), *proven))
    endpoints = tuple(Endpoint(ip, record.discovery_port) for ip in ips if record.discovery_port)
    return Contact(record.node_name, endpoints[:MAX_ENDPOINTS], configured=bool(peer.relay_rank))
