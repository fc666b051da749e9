"""Time, network, and what nodes do when: joins, departures, publications, pings and lookups as discrete events."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from heapq import heappop, heappush
from typing import TypeVar

from lab.simulate.member import FORGED, MALICE, Crowd, Member
from services.discovery.core.errors import DiscoveryError
from services.discovery.core.model import Record, Signed, node_id
from services.discovery.core.overlay import COPIES, REFRESH
from services.discovery.core.records import Held
from services.discovery.core.routing import Node
from services.discovery.core.search import Search

HOUR = 3600.0
START = 1_000_000.0  # the clock at the beginning, seconds
# Round trips, and what a call costs that nobody answers; seconds.
FASTEST, SLOWEST, TIMEOUT = 0.02, 0.2, 2.0
# Seconds until all have joined, and until the tables have settled.
JOINING, SETTLING = 300.0, 300.0
# Seconds between two publications: half of a record's life.
HALF_LIFE = 300.0
# Nodes that everybody has in its configuration; they stay.
FIRST_CONTACTS = 3
RELAYS = 0.01  # share of servers that serve as relay

_A = TypeVar("_A")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated. Shares from 0 to 1; `churn`: share of nodes that leave, and of new ones, per hour."""

    nodes: int = 10_000
    churn: float = 0.1
    hours: float = 1.0
    seed: int = 1
    malicious: float = 0.0
    clients: float = 0.5
    lookups: float = 4.0  # of each node in an hour


@dataclass(frozen=True, slots=True)
class Looked:
    """How one lookup ended; `at`: seconds since counting began, `hops` 0: it had the record itself."""

    at: float
    success: bool
    hops: int
    asked: int


class World:
    """The simulation; `run` once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.now = START
        self.begin = START + JOINING + SETTLING
        self.end = self.begin + plan.hours * HOUR
        self.looked: list[Looked] = []
        self.members: list[Member] = []  # alive
        self.gone: list[Member] = []
        self._rng = random.Random(plan.seed)
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._made = 0
        self._order = 0
        self._by_id: dict[int, Member] = {}
        self.crowd = Crowd(self._rng)
        self._news: dict[bytes, Record] = {}
        self._contacts = [self._create(server=True, malice="") for _ in range(FIRST_CONTACTS)]

    def run(self) -> None:
        """From the first join to the end."""
        for member in self._contacts:
            self._after(0.0, self._join, member)
        others = self.plan.nodes - FIRST_CONTACTS
        for index in range(others):
            self._after(JOINING * (index + 1) / others, self._arrive)
        if self.plan.churn:
            self._after(JOINING, self._churn)
        while self._events and self._events[0][0] <= self.end:
            self.now, _, action, arguments = heappop(self._events)
            action(*arguments)

    # Who is there

    def _create(self, *, server: bool, malice: str) -> Member:
        rng = self._rng
        self._made += 1
        name = f"edge-{self._made}"
        where = f"{rng.randint(11, 99)}.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}:20008"
        node = Node(node_id("c", name), name, where)
        relay = server and not malice and rng.random() < RELAYS
        member = Member.make(node, server, malice, relay, self.now)
        self._by_id[node.id] = member
        self.members.append(member)
        if malice:
            self.crowd.nodes[node.id] = node
        return member

    def _arrive(self) -> None:
        rng, plan = self._rng, self.plan
        # A client keeps nothing for anybody and is asked by nobody: all the malice is the servers'.
        server = rng.random() >= plan.clients
        malice = rng.choice(MALICE) if server and rng.random() < plan.malicious else ""
        self._join(self._create(server=server, malice=malice))

    def _churn(self) -> None:
        """One leaves without a word, and a new one comes."""
        at = self._rng.randrange(FIRST_CONTACTS, len(self.members))
        member = self.members[at]
        self.members[at] = self.members[-1]
        self.members.pop()
        member.alive = False
        self.crowd.nodes.pop(member.node.id, None)
        self.gone.append(member)
        self._arrive()
        self._after(self._rng.expovariate(self.plan.churn * self.plan.nodes / HOUR), self._churn)

    # What a node does

    def _join(self, member: Member) -> None:
        self._publish(member)
        self._after(self._rng.uniform(1, 2) * member.overlay.pace() / 2, self._tend, member)
        self._after(self._rng.uniform(60, REFRESH), self._explore, member)
        if not member.malice and self.plan.lookups:
            self._after(self._rng.expovariate(self.plan.lookups / HOUR), self._look_up, member)

    def _publish(self, member: Member) -> None:
        """The next version of the record, to the servers nearest to it."""
        if not member.alive:
            return
        self._after(HALF_LIFE * self._rng.uniform(0.95, 1.0), self._publish, member)
        # Who has just come knows few, and few know it: its first holders are not yet the nearest.
        young = self.now - member.born < REFRESH
        if len(member.holders) == COPIES and not young and self.now - member.looked < REFRESH:
            self._put(member)
            return
        member.looked = self.now

        def found(search: Search[Signed]) -> None:
            member.holders = search.nearest()
            self._put(member)

        self._seek(member, member.node.id, found, alone=True)

    def _put(self, member: Member) -> None:
        record, signed = member.sign(self.now)
        if member.relay:
            signed = replace(signed, record=f"{member.node.name} {record.revision}".encode().ljust(len(signed.record)))
            self._news[signed.record] = record
        open_calls = len(member.holders)

        def keep(holder: Member) -> bool:
            try:
                holder.keep(member.node.id, record, signed, self.now)
                holder.overlay.meet_relay(member.node.id, record, signed, self.now)
            except DiscoveryError:
                return False
            self.introduce(member, holder)
            return True

        def kept(_: bool | None) -> None:
            nonlocal open_calls
            open_calls -= 1
            if not open_calls:
                member.published = record.revision

        for holder in member.holders:
            self.call(member, holder, keep, kept)

    def _tend(self, member: Member) -> None:
        """One ping now and then: keeps the table alive, and brings news of relays."""
        if not member.alive:
            return
        self._after(member.overlay.pace() * self._rng.uniform(0.9, 1.1), self._tend, member)
        eldest = member.overlay.table.eldest(self._rng.random())
        if eldest is not None:
            self._ping(member, eldest)
        elif member not in self._contacts:
            self._ping(member, self._rng.choice(self._contacts).node)

    def _ping(self, member: Member, node: Node) -> None:
        def told(answer: list[Held] | None) -> None:
            for held in answer or ():
                record = self._news[held.signed.record]
                try:
                    member.overlay.meet_relay(node_id("c", record.node_name), record, held.signed, self.now)
                except DiscoveryError:
                    pass

        self.call(member, node, lambda callee: callee.overlay.told(self.now, self._rng), told)

    def introduce(self, member: Member, callee: Member) -> None:
        """The only way into a table is to answer: who called may be called back."""
        if callee.overlay.table.wants(member.node.id, self.now):
            self._ping(callee, member.node)

    def _explore(self, member: Member) -> None:
        if not member.alive:
            return
        self._after(REFRESH * self._rng.uniform(0.9, 1.1), self._explore, member)
        member.overlay.records.expire(self.now)
        member.overlay.relays.expire(self.now)
        self._seek(member, member.overlay.corner(self._rng), lambda search: None, alone=True)

    def _look_up(self, member: Member) -> None:
        """Looks for somebody whose record is published."""
        if not member.alive:
            return
        self._after(self._rng.expovariate(self.plan.lookups / HOUR), self._look_up, member)
        subject = self._rng.choice(self.members)
        began = self.now
        expected = subject.published
        if began < self.begin or not expected or subject is member:
            return

        def ended(search: Search[Signed]) -> None:
            success = search.best is not None and search.revision >= expected
            self.looked.append(Looked(began - self.begin, success, search.hops, search.asked))

        own = member.overlay.records.get(subject.node.id, began)
        if own is not None:
            self.looked.append(Looked(began - self.begin, own.revision >= expected, 0, 0))
            return
        self._seek(member, subject.node.id, ended)

    # Searches and calls

    def _seek(self, member: Member, key: int, ended: Callable[[Search[Signed]], None], *, alone: bool = False) -> None:
        start = (
            [it.node for it in self._contacts if it is not member] if len(member.overlay.table) < FIRST_CONTACTS else []
        )
        _Seeking(self, member, member.overlay.seek(key, start, self.now, alone=alone), ended).advance()

    def holds(self, held: Held) -> bool:
        """What checking signature and time tells."""
        return held.signed.signature != FORGED and held.until > self.now

    def call(
        self, member: Member, node: Node, serve: Callable[[Member], _A], answered: Callable[[_A | None], None]
    ) -> None:
        """One question; `answered` gets the answer, or None after a timeout."""
        callee = self._by_id.get(node.id)
        up = callee is not None and callee.reachable
        delay = self._rng.uniform(FASTEST, SLOWEST) if up else TIMEOUT
        self._after(delay, self._called, member, node, callee, serve, answered)

    def _called(
        self,
        member: Member,
        node: Node,
        callee: Member | None,
        serve: Callable[[Member], _A],
        answered: Callable[[_A | None], None],
    ) -> None:
        if not member.alive:
            return
        counts = self.now >= self.begin
        member.sent += counts
        if callee is None or not callee.reachable:
            member.overlay.table.failed(node.id, self.now)
            answered(None)
            return
        callee.sent += counts
        callee.called = True
        doubtful = member.overlay.table.heard(node, self.now)
        if doubtful is not None:
            self._ping(member, doubtful)
        answered(serve(callee))

    def _after(self, seconds: float, action: Callable[..., None], *arguments: object) -> None:
        self._order += 1
        heappush(self._events, (self.now + seconds, self._order, action, arguments))


class _Seeking:
    """One search that is under way. An object, since closures that call each other are cycles, and millions of cycles
    would need the garbage collector."""

    __slots__ = ("_ended", "_member", "_over", "_search", "_world")

    def __init__(
        self, world: World, member: Member, search: Search[Signed], ended: Callable[[Search[Signed]], None]
    ) -> None:
        self._world = world
        self._member = member
        self._search = search
        self._ended = ended
        self._over = False

    def advance(self) -> None:
        """Ask on."""
        for node in self._search.ask():
            self._world.call(self._member, node, self._find, partial(self._heard, node))
        if self._search.done and not self._over:
            self._over = True
            self._ended(self._search)

    def _find(self, callee: Member) -> tuple[list[Node], Held | None]:
        # A node that somebody has called says so, and is called back; the others are most likely behind NATs.
        if self._member.called:
            self._world.introduce(self._member, callee)
        return callee.find(self._search.target, self._member.node.id, self._world.now, self._world.crowd)

    def _heard(self, node: Node, answer: tuple[list[Node], Held | None] | None) -> None:
        search, world = self._search, self._world
        named, held = answer or ((), None)
        if answer is None or (held is not None and not world.holds(held)):
            search.failed(node)
        else:
            table = self._member.overlay.table
            live = [it for it in named if not table.resting(it.id, world.now)]
            record, revision = (held.signed, held.revision) if held is not None else (None, 0)
            search.answered(node, live, record, revision)
        self.advance()
