"""The DHT's driver: asks, is asked, and knows which servers keep the own record.

What to do is decided in core/overlay.py, core/search.py and core/routing.py; here are the calls and the clock. Only
who answers a call of ours gets into the routing table, so nobody behind a NAT ever does, whatever it says of itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from dataclasses import replace

from ..bell import Bell
from ..core.backoff import Backoff
from ..core.contacts import Contact, Endpoint
from ..core.errors import DiscoveryError, TableFull
from ..core.memory import MAX_REMEMBERED, remember, worth_a_try
from ..core.model import AddressSource, Record, Signed, Source, node_id
from ..core.overlay import COPIES, REFRESH, Overlay
from ..core.routing import Node
from ..core.search import Search
from ..core.standing import Standing
from ..core.vantage import FIRST_PORT, worth_a_call
from ..core.waiting import Waiting
from ..directory import Directory
from ..peers import NodeClient, Refused
from ..probe import Unreachable
from ..wire import MAX_WHERE
from .places import contact_at, contact_of_server, endpoint_of, is_public, server_at

# Seconds one question may take; a search for a name, within what the tunnel waits; a search for the own neighbourhood.
DEADLINE, LOOKUP, SEARCH = 2.0, 5.0, 20.0
# Seconds a lookup waits for further, perhaps newer records after the first.
GRACE = 0.3
# Calls back at once.
CALLERS_BACK = 2
# First contacts called at once: while nobody is known, and beside the ping that keeps the table alive.
FIRST_ALONE, FIRST_BESIDE = 8, 2
# Servers that are told at once of a relay that is news; they tell as many.
FANOUT = 3
# Seconds between two refreshes after the start, doubled each time up to REFRESH: at first few know many. And at least
# between two, whatever gives reason to.
FIRST_REFRESH, MIN_REFRESH = 5.0, 10.0
# Seconds for which a call makes this node a server.
CALLED = 300.0


class Dht:
    """What this node is to the DHT. `run` asks; the other methods are for those who serve, publish and look up."""

    def __init__(self, directory: Directory, client: NodeClient, rng: random.Random) -> None:
        self._directory = directory
        self._client = client
        self._rng = rng
        self.enabled = directory.settings.lookup
        self.overlay = Overlay(self.key(directory.settings.node_name))
        self._table = self.overlay.table
        # Servers nearest to this node, as the last search found them; they are to keep its record.
        self.holders: list[Contact] = []
        self._waiting = Waiting()
        self._visitors = Bell()
        self._doubts = Bell()
        self._called_at: float | None = None
        self._refreshed_at: float | None = None

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tend())
            tasks.create_task(self._refresh())
            for _ in range(CALLERS_BACK):
                tasks.create_task(self._call_back())

    # As a server

    def called(self) -> None:
        """Another node called this one, so it can be reached."""
        self._called_at = _now()

    def pinged(self, caller: str) -> None:
        """That node pinged this one, so both know of the same relays now."""
        self.overlay.pinged(self.key(caller), _now())

    @property
    def server(self) -> bool:
        """Others can call this node."""
        return self._called_at is not None and _now() - self._called_at < CALLED

    def keep(self, record: Record, signed: Signed, caller: str = "") -> None:
        """A verified record, published here by its subject, which calls from the IP `caller`. Raises DiscoveryError when
        it cannot be kept."""
        full: TableFull | None = None
        try:
            self.overlay.records.put(self.key(record.node_name), record, signed, self._directory.wall())
        except TableFull as error:
            full = error
        # In a large mesh the registry, and whoever watches it, is spared those that nobody here asks for.
        strange = self.overlay.large and self._directory.registry.entry(record.node_name) is None
        if (strange or not self._directory.volunteer(record, signed)) and full is not None:
            raise full
        self.invite(contact_at(record), caller)

    def held(self, name: str) -> Signed | None:
        """The newest record of a node that holds, whether published here or learnt otherwise."""
        directory = self._directory
        now = directory.wall()
        kept = self.overlay.records.get(self.key(name), now)
        entry = directory.registry.fresh(name, now)
        if entry is None or entry.record is None or (kept is not None and kept.revision >= entry.record.revision):
            return kept.signed if kept is not None else None
        return entry.signed

    def named(self, target: int, asker: str) -> list[Node]:
        """The servers that an asker is told of."""
        key = self.key(asker)
        known, peer = self._table.get(key), self._directory.peers.get(asker)
        near = (known is not None and known.near) or (peer is not None and Source.MDNS in peer.sources)
        return self.overlay.named(target, key, near=near)

    def told(self) -> list[Signed]:
        """The relays that others are told of."""
        return [held.signed for held in self.overlay.told(self._directory.wall(), self._rng)]

    # What others bring

    def invite(self, contact: Contact, seen: str, *, proven: bool = False) -> None:
        """Call a node, which was `seen` at an IP and names these addresses itself, when there is time: the way into the
        table. Not if it has no use for it, unless it is `proven` that the node answers."""
        if proven or self._table.wants(self.key(contact.node_name), _now()):
            near, loopback = bool(seen) and self._directory.near(seen), self._directory.settings.loopback
            where = (
                it for it in contact.endpoints if worth_a_call(it.host, it.port, seen, near=near, loopback=loopback)
            )
            self._call_soon(replace(contact, endpoints=tuple(where)), proven=proven)

    def _call_soon(self, contact: Contact, *, proven: bool = True) -> None:
        if self.enabled and self._waiting.add(contact, proven=proven):
            self._visitors.ring()

    def answered(self, record: Record, signed: Signed, where: Endpoint) -> None:
        """A node answered a publication there, with its own record."""
        node = self._table.get(self.key(record.node_name))
        if node is None:
            self.invite(contact_at(record), where.host, proven=True)
        elif is_public(node):
            self.meet_relay(signed)

    def lost(self, contact: Contact) -> None:
        """A holder did not answer. The next search finds who is there instead; unless it is our own network that failed,
        when it finds nobody, and nothing changes."""
        if any(contact.node_name == holder.node_name for holder in self.holders):
            self._doubts.ring()

    def meet_relay(self, signed: Signed) -> None:
        """Somebody tells of a relay; perhaps a lie, so it is verified."""
        directory = self._directory
        if directory.made(signed) or any(held.signed == signed for held in self.overlay.relays):
            return
        try:
            record = directory.check(signed)
            key, now = self.key(record.node_name), directory.wall()
            known = self.overlay.relays.get(key, now)
            self.overlay.relays.use(self.key(it.relay) for it in directory.record().reservations)
            news = self.overlay.meet_relay(key, record, signed, now)
        except DiscoveryError as error:
            directory.counts["refused", error.reason] += 1
            return
        while self.overlay.relays.left:
            directory.registry.dismiss(self.overlay.relays.left.pop())
        if news or directory.registry.entry(record.node_name) is not None:
            directory.try_take(signed, Source.LOOKUP, record.node_name, wanted=False)
        if news and known is None and self.enabled:
            directory.log.info("relay heard of", extra={"peer": record.node_name})
            servers = list(self._table)
            for node in self._rng.sample(servers, min(FANOUT, len(servers))):
                self._call_soon(contact_of_server(node))

    # As one who asks

    async def find(self, name: str) -> tuple[bool, int, int]:
        """Look a record up and put it into the registry. Whether somebody had it, how many were asked, and how many
        answered (of the nearest)."""
        search = self.overlay.seek(self.key(name), self._first(), _now())
        await self._run(search, LOOKUP, name)
        self._directory.counts["searches", "found" if search.best is not None else "unknown"] += 1
        if search.best is not None:
            self._directory.take(search.best, Source.LOOKUP, expected=name)
        return search.best is not None, search.asked, len(search.nearest())

    async def _run(self, search: Search[Signed], timeout: float, name: str = "") -> None:
        running: set[asyncio.Task[None]] = set()
        try:
            async with asyncio.timeout(timeout) as limit:
                # Done may be before the last answers: who has enough records waits for nobody else.
                while not search.done:
                    running |= {asyncio.create_task(self._ask(search, node, name)) for node in search.ask()}
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                    if search.best is not None and (limit.when() or 0.0) > _now() + GRACE:
                        limit.reschedule(_now() + GRACE)
        except TimeoutError:
            pass
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _ask(self, search: Search[Signed], node: Node, name: str) -> None:
        directory = self._directory
        callback = contact_at(directory.record()).endpoints[:MAX_WHERE] if self.server else ()
        try:
            found = await self._client.find(contact_of_server(node), search.target, name, callback, timeout=DEADLINE)
            record = directory.check(found.record, expected=name) if found.record is not None else None
        except (Unreachable, Refused, DiscoveryError) as error:
            search.failed(node)
            if isinstance(error, Unreachable):
                self._failed(node.id)
            return
        self._heard(node, found.where)
        named = (self._usable(it) for it in found.servers)
        live = [it for it in named if it.where and not self._table.resting(it.id, _now())]
        search.answered(node, live, found.record if record is not None else None, record.revision if record else 0)

    def _heard(self, node: Node, where: Endpoint, record: Record | None = None) -> None:
        """It answered there; its `record` is at hand when it was asked for."""
        self._directory.counts["dht_calls", "ok"] += 1
        if record is None:
            known = self._table.get(node.id)
            others = known.where.split(",")[1:] if known is not None else []
        else:
            others = [str(it) for it in contact_at(record, AddressSource.ADVERTISED).endpoints]
        places = dict.fromkeys([str(where), *others])
        near = self._directory.near(where.host)
        heard = Node(node.id, node.name, ",".join(list(places)[:MAX_WHERE]), near)
        if not near and all(it.near or self._table.doubted(it.id) for it in self._table):
            # The first beyond our LAN: there is an uplink again, so who is nearest to us there?
            self._doubts.ring()
        doubtful = self._table.heard(heard, _now())
        if doubtful is not None:
            self._call_soon(contact_of_server(doubtful))

    def _failed(self, key: int) -> None:
        self._directory.counts["dht_calls", "failed"] += 1
        self._table.failed(key, _now())

    async def _ping(self, contact: Contact) -> None:
        directory = self._directory
        try:
            told = await self._client.tell(contact, self.told(), timeout=DEADLINE)
            record = directory.check(told.own, expected=contact.node_name)
        except (Unreachable, Refused, DiscoveryError) as error:
            if contact.node_name and not isinstance(error, Refused):
                self._failed(self.key(contact.node_name))
            return
        key = self.key(record.node_name)
        self._heard(Node(key, record.node_name, ""), told.where, record)
        node = self._table.get(key)
        relays = told.relays
        # A relay of our own LAN is known there by mDNS, and of no use elsewhere.
        if node is None or is_public(node):
            relays = (told.own, *relays)
        for relay in relays:
            self.meet_relay(relay)

    async def _call_back(self) -> None:
        while True:
            seen = self._visitors.count
            if (contact := self._waiting.take()) is not None:
                await self._ping(contact)
            else:
                await self._visitors.wait(seen)

    async def _tend(self) -> None:
        """Keeps the table alive, and brings news of relays."""
        bell = self._directory.wake_bell
        alone = Backoff(1.0, 10.0, self._rng)
        while True:
            woken = bell.count
            eldest = self._table.eldest(self._rng.random())
            contacts = [contact_of_server(eldest)] if eldest is not None else []
            strangers = self._strangers()
            await asyncio.gather(*(self._ping(it) for it in (*contacts, *strangers)))
            self.overlay.records.expire(self._directory.wall())
            self.overlay.relays.expire(self._directory.wall())
            if len(self._table):
                alone.reset()
            pause = self.overlay.pace() * self._rng.uniform(0.9, 1.1) if len(self._table) else alone.next()
            began = _now()
            while bell.count == woken and (left := self.overlay.due(began, pause, bool(strangers)) - _now()) > 0:
                await bell.wait(woken, left)
            if bell.count != woken:
                self._table.forgive()
                alone.reset()
                self._doubts.ring()

    async def _refresh(self) -> None:
        """Finds the servers nearest to this node, and some far away: what nothing else would bring."""
        pause = FIRST_REFRESH
        while True:
            doubts = self._doubts.count
            search = self.overlay.seek(self.overlay.own, self._first(), _now(), alone=True)
            await self._run(search, SEARCH)
            nearest = self._spread(search.nearest())
            if nearest:
                self._refreshed_at = _now()
                self._remember()
                if (found := [contact_of_server(node) for node in nearest]) != self.holders:
                    self.holders = found
                    # Wakes the publisher; to whoever else reads the registry it says nothing new.
                    self._directory.peers_bell.ring()
            corner = self.overlay.seek(self.overlay.corner(self._rng), [], _now(), alone=True)
            await self._run(corner, SEARCH)
            await asyncio.sleep(min(pause, MIN_REFRESH) * self._rng.uniform(0.9, 1.1))
            if await self._doubts.wait(doubts, max(0.0, pause - MIN_REFRESH)) != doubts:
                pause = min(pause, MIN_REFRESH)
            pause = min(2 * pause, REFRESH) if nearest else FIRST_REFRESH

    def _remember(self) -> None:
        """For the next run: who is there now, then who was; one that starts without its uplink shall not forget all that
        is beyond."""
        directory = self._directory
        known = self._table.nearest(self.overlay.own, MAX_REMEMBERED)
        directory.servers = remember(known, directory.servers, directory.wall())

    def _spread(self, nearest: list[Node]) -> list[Node]:
        """With as many from far as there should be, so that those who look from outside our LAN find a holder. When only
        neighbours answer, our uplink is to blame, and those beyond it stay."""
        found = [self._table.get(node.id) or node for node in nearest]
        far = sum(not node.near for node in found)
        others = (it for it in self._table.nearest(self.overlay.own, len(self._table)) if not it.near)
        fit = [it for it in others if it not in found and not (far and self._table.doubted(it.id))]
        return found + fit[: max(0, COPIES - far)]

    # Whom to ask first

    def _contacts(self) -> list[Contact]:
        directory = self._directory
        young = worth_a_try(directory.servers, directory.wall())
        nodes = (self._usable(Node(self.key(it.name), it.name, it.where)) for it in young)
        remembered = [contact_of_server(node) for node in nodes if node.where]
        return [*directory.contacts(), *directory.neighbours(), *remembered]

    def _strangers(self) -> list[Contact]:
        """First contacts that are not in the table: some, since many may be dead. The configuration's first."""
        alone = not len(self._table)
        found: dict[str, Contact] = {}
        for contact in self._contacts():
            key = self.key(contact.node_name)
            if key == self.overlay.own or not contact.endpoints:
                continue
            if alone or (contact.node_name and self._table.wants(key, _now())):
                found.setdefault(contact.key, replace(contact, endpoints=contact.endpoints[:MAX_WHERE]))
        count = FIRST_ALONE if alone else FIRST_BESIDE
        return self._rng.sample(list(found.values()), min(count, len(found)))

    def _first(self) -> list[Node]:
        """To begin a search with, while the table is small."""
        if len(self._table) >= COPIES:
            return []
        named = [it for it in self._contacts() if it.node_name and it.endpoints]
        picked = self._rng.sample(named, min(COPIES, len(named)))
        return [server_at(self.key(it.node_name), it) for it in picked]

    def _usable(self, node: Node) -> Node:
        """Without addresses at which no other node can be: a liar must not make us call ourselves."""
        where = [it for it in node.where.split(",") if it and self._callable(it)]
        return replace(node, where=",".join(where))

    def _callable(self, where: str) -> bool:
        endpoint = endpoint_of(where)
        if endpoint.port < FIRST_PORT:
            return False
        ip = ipaddress.ip_address(endpoint.host)
        if ip.is_loopback:
            return self._directory.settings.loopback
        return not (ip.is_unspecified or ip.is_multicast or ip.is_link_local)

    def key(self, name: str) -> int:
        """The id of a node."""
        return node_id(self._directory.settings.cluster, name)

    def standing(self) -> Standing:
        """For status."""
        return Standing(
            self.server,
            len(self._table),
            round(self._table.size()),
            len(self.overlay.records),
            self.overlay.records.bytes,
            len(self.overlay.relays),
            tuple(holder.node_name for holder in self.holders),
            _now() - self._refreshed_at if self._refreshed_at is not None else None,
        )


def _now() -> float:
    return asyncio.get_running_loop().time()
