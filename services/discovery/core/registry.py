"""Every peer this node knows, merged from all sources.

A peer is there because some source *claims* it, each claim until its own moment. The record is the newest one
with a valid signature, whoever brought it; addresses that this node knows by itself (configuration, mDNS) are
added to it. When the last live claim lapses, the record is not forgotten at once: it stays as a CACHE claim for
a day, so that a node which lost its relays, or restarts offline, still finds its neighbours (a dial that fails
costs little; a name that nobody can resolve costs the connection). Cached peers are the first to make room. Peers that
nobody here wanted, of whom others told us, end with their last claim: else the holder of a few records would soon
remember a day's publishers.

Signatures are checked before a record comes here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from .errors import Expired, TableFull
from .model import Address, AddressSource, Peer, Record, Signed, Source
from .store import Store

# Peers known at once; a record is about 1.5 KiB, the table about 8 MiB at worst.
MAX_PEERS = 4096
# How far the clocks of two nodes may be apart, seconds.
CLOCK_SKEW = 600.0
# No record is believed for longer than this without being renewed, seconds.
MAX_LIFETIME = 3600.0
# How long the record of a peer that no live source names is kept, seconds.
STALE_AGE = 86_400.0

_FOREVER = math.inf
# Claims that no looked-up record may push out.
_KEPT = (Source.CONFIG, Source.MDNS, Source.KUBERNETES)


@dataclass(frozen=True, slots=True)
class Named:
    """A relay as the configuration names it. Ports of 0 mean: as its record says."""

    node_name: str
    rank: int
    ips: tuple[str, ...] = ()
    relay_port: int = 0


@dataclass(slots=True)
class Entry:
    """One peer. Invariant: `claims` is not empty, and some claim other than CONFIG implies a record."""

    name: str
    claims: dict[Source, float] = field(default_factory=dict)
    record: Record | None = None
    signed: Signed | None = None
    named: Named | None = None
    seen: tuple[str, ...] = ()
    wanted: bool = False

    @property
    def cached(self) -> bool:
        """No live source names it."""
        return self.claims.keys() == {Source.CACHE}


@dataclass(frozen=True, slots=True)
class Ports:
    """Default public ports, for peers of whom nobody has signed anything."""

    tunnel: int = 20006
    relay: int = 20007
    discovery: int = 20008


class Registry:
    """Peers by name, with `store` as what watchers follow. `own` never enters it."""

    def __init__(self, own: str, store: Store[Peer], *, capacity: int = MAX_PEERS, ports: Ports | None = None) -> None:
        self.own = own
        self.store = store
        self._capacity = capacity
        self._ports = ports or Ports()
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, name: str) -> Entry | None:
        """What is known of a peer, with the signed bytes."""
        return self._entries.get(name)

    def entries(self) -> list[Entry]:
        """All peers."""
        return list(self._entries.values())

    def configure(self, relays: list[Named]) -> None:
        """The whole set of relays that the configuration names; replaces the former set."""
        named = {relay.node_name: relay for relay in relays if relay.node_name != self.own}
        for entry in self.entries():
            if entry.named is not None and entry.name not in named:
                entry.named = None
                self.withdraw(entry.name, Source.CONFIG)
        for name, relay in named.items():
            entry = self._entries.get(name) or self._admit(name, Source.CONFIG)
            entry.named, entry.wanted = relay, True
            entry.claims[Source.CONFIG] = _FOREVER
            self._publish(entry)

    def offer(
        self,
        record: Record,
        signed: Signed,
        source: Source,
        now: float,
        *,
        seen: tuple[str, ...] | None = None,
        wanted: bool = True,
    ) -> bool:
        """Take a verified record from a source; True when it is newer than what was known.

        `seen` are addresses under which the source saw the peer (mDNS); `wanted`: not only others want us to have it. Raises Expired for a record that is out
        of date or from the future beyond CLOCK_SKEW (CACHE: beyond STALE_AGE), TableFull when there is no room.
        """
        until = lapse_of(record, now) if source is not Source.CACHE else record.expires_at + STALE_AGE
        if until <= now:
            raise Expired(f"the record of {record.node_name} ended {now - record.expires_at:.0f} s ago")
        if record.issued_at > now + CLOCK_SKEW:
            raise Expired(
                f"the record of {record.node_name} was signed {record.issued_at - now:.0f} s in the future, "
                f"expected at most {CLOCK_SKEW:.0f}: set the clocks of both nodes"
            )
        entry = self._entries.get(record.node_name) or self._admit(record.node_name, source)
        newer = entry.record is None or record.revision > entry.record.revision
        if newer:
            entry.record, entry.signed = record, signed
        if newer or (entry.record is not None and record.revision == entry.record.revision):
            entry.claims[source] = max(until, entry.claims.get(source, 0.0))
        else:
            entry.claims.setdefault(source, until)
        if source is not Source.CACHE:
            entry.claims.pop(Source.CACHE, None)
        if seen is not None:
            entry.seen = seen
        entry.wanted = entry.wanted or wanted
        self._publish(entry)
        return newer

    def dismiss(self, name: str) -> None:
        """Others' word of a peer does not count any more; what somebody here wants stays."""
        entry = self._entries.get(name)
        if entry is not None and not entry.wanted:
            self.withdraw(name, Source.LOOKUP)

    def want(self, name: str) -> None:
        """Somebody here asks for a peer."""
        entry = self._entries.get(name)
        if entry is not None:
            entry.wanted = True

    def withdraw(self, name: str, source: Source) -> None:
        """A source no longer names a peer."""
        entry = self._entries.get(name)
        if entry is None:
            return
        entry.claims.pop(source, None)
        if source is Source.MDNS:
            entry.seen = ()
        self._settle(entry)

    def expire(self, now: float) -> None:
        """Drop what has lapsed at `now`."""
        for entry in self.entries():
            lapsed = [source for source, until in entry.claims.items() if until <= now]
            for source in lapsed:
                del entry.claims[source]
                if source is Source.MDNS:
                    entry.seen = ()
            if lapsed:
                # A cached record that lapsed must not be cached again.
                self._settle(entry, forget=Source.CACHE in lapsed or self._stale_until(entry) <= now)

    def next_expiry(self) -> float:
        """When `expire` has something to do; infinite when never."""
        return min((until for entry in self._entries.values() for until in entry.claims.values()), default=_FOREVER)

    def fresh(self, name: str, now: float) -> Entry | None:
        """The entry of a peer whose record still holds, clock skew allowed for."""
        entry = self._entries.get(name)
        if entry is None or entry.record is None or entry.record.expires_at + CLOCK_SKEW <= now:
            return None
        return entry

    def _settle(self, entry: Entry, *, forget: bool = False) -> None:
        live = entry.claims.keys() - {Source.CACHE}
        if (forget or not entry.wanted) and not live - {Source.CONFIG}:
            entry.record = entry.signed = None
        elif entry.record is not None and not live - {Source.CONFIG}:
            entry.claims[Source.CACHE] = self._stale_until(entry)
        if entry.claims:
            self._publish(entry)
        else:
            self._drop(entry)

    def _stale_until(self, entry: Entry) -> float:
        return entry.record.expires_at + STALE_AGE if entry.record is not None else 0.0

    def _admit(self, name: str, source: Source) -> Entry:
        if len(self._entries) >= self._capacity and source is not Source.CONFIG:
            victim = self._victim(source)
            if victim is None:
                raise TableFull(f"{len(self._entries)} peers are known, which is the limit; no room for {name}")
            self._drop(victim)
        entry = self._entries[name] = Entry(name)
        return entry

    def _victim(self, source: Source) -> Entry | None:
        """Who makes room: cached peers for anybody but the cache, looked-up ones for those seen in the LAN."""
        if source is Source.CACHE:
            return None
        cached = [entry for entry in self._entries.values() if entry.cached]
        if not cached and source in _KEPT:
            cached = [entry for entry in self._entries.values() if not entry.claims.keys() & set(_KEPT)]
        return min(cached, key=lambda entry: max(entry.claims.values()), default=None)

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.name]
        self.store.remove(entry.name)

    def _publish(self, entry: Entry) -> None:
        self.store.put(entry.name, self._merge(entry))

    def _merge(self, entry: Entry) -> Peer:
        named = entry.named
        record = entry.record or Record(
            entry.name,
            tunnel_port=self._ports.tunnel,
            relay_port=self._ports.relay,
            discovery_port=self._ports.discovery,
        )
        known = {address.ip for address in record.addresses}
        extra = [Address(ip, AddressSource.MDNS) for ip in entry.seen if ip not in known]
        known.update(entry.seen)
        if named is not None:
            extra += [Address(ip, AddressSource.ADVERTISED) for ip in named.ips if ip not in known]
        stale = not entry.claims.keys() - {Source.CONFIG, Source.CACHE}
        addresses = (*extra, *record.addresses) if stale else (*record.addresses, *extra)
        relay_port = named.relay_port if named is not None and named.relay_port else record.relay_port
        if extra or relay_port != record.relay_port:
            record = replace(record, addresses=addresses, relay_port=relay_port)
        return Peer(
            record=record,
            sources=tuple(sorted(entry.claims)),
            verified=entry.signed is not None,
            relay_rank=named.rank if named is not None else 0,
        )


def lapse_of(record: Record, now: float) -> float:
    """Until when a record that arrives at `now` is believed: its lifetime from now on, but no longer than its end
    plus CLOCK_SKEW; a node whose clock is a few minutes off is thus neither refused nor kept for ever."""
    lifetime = min(record.expires_at - record.issued_at, MAX_LIFETIME)
    return min(record.expires_at + CLOCK_SKEW, now + lifetime)
