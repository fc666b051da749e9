"""One simulated node, honest or not: what it answers."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from services.discovery.core.model import Address, AddressSource, Peer, Record, RelayRole, Reservation, Signed, Source
from services.discovery.core.overlay import Overlay
from services.discovery.core.records import Held
from services.discovery.core.registry import Registry
from services.discovery.core.routing import K, Node
from services.discovery.core.store import Store

# Bytes of the parts of a signed record with one address and two reservations, as a real node signs it.
RECORD, SIGNATURE, CERTIFICATE = bytes(180), bytes(71), bytes(450)
FORGED = b"forged"
LIFETIME = 600.0  # seconds, as in core/own.py

# What malicious nodes do, in equal shares.
SILENT = "silent"  # takes questions, answers none
COLLUDING = "colluding"  # names only other malicious nodes, has never seen a record
INVENTING = "inventing"  # names nodes that do not exist, nearer than any
FORGING = "forging"  # has a record for every question, with a signature that does not hold
STALE = "stale"  # keeps the first version of a record as long as anybody would believe it
MALICE = (SILENT, COLLUDING, INVENTING, FORGING, STALE)


@dataclass(slots=True, eq=False)
class Member:
    """A node. `published`: the revision that all its holders have been told; `called`: somebody could call it."""

    node: Node
    server: bool
    malice: str
    relay: bool
    born: float
    overlay: Overlay
    alive: bool = True
    revision: int = 0
    published: int = 0
    looked: float = 0.0
    holders: list[Node] = field(default_factory=list)
    sent: int = 0
    called: bool = False

    @classmethod
    def make(cls, node: Node, server: bool, malice: str, relay: bool, now: float) -> Member:
        """One that has just started and knows nobody."""
        return cls(node, server, malice, relay, now, Overlay(node.id))

    @property
    def reachable(self) -> bool:
        """Whether a call would be answered."""
        return self.alive and self.server and self.malice != SILENT

    def sign(self, now: float) -> tuple[Record, Signed]:
        """The next version of its record."""
        self.revision += 1
        relay = RelayRole() if self.relay else None
        record = Record(self.node.name, "c", self.revision, now, now + LIFETIME, relay=relay)
        return record, Signed(RECORD, SIGNATURE, CERTIFICATE)

    def keep(self, key: int, record: Record, signed: Signed, now: float) -> None:
        """Asked to keep a record."""
        if self.malice == STALE and self.overlay.records.get(key, now):
            return
        self.overlay.records.put(key, record, signed, now)

    def find(self, key: int, asker: int, now: float, crowd: Crowd) -> tuple[list[Node], Held | None]:
        """Asked for the record under a key, and for the nodes near it."""
        match self.malice:
            case "colluding":
                return crowd.colluders(key), None
            case "inventing":
                return crowd.invent(key), None
            case "forging":
                return [], Held(1 << 40, now + LIFETIME, Signed(RECORD, FORGED, CERTIFICATE))
        return self.overlay.named(key, asker), self.overlay.records.get(key, now)

    def state(self, now: float) -> int:
        """Bytes of everything that its DHT holds, and of what a real node has of that in its registry."""
        registry = Registry(self.node.name, Store[Peer](0))
        volunteers = () if self.overlay.large else tuple(self.overlay.records)
        for number, held in enumerate((*volunteers, *self.overlay.relays)):
            registry.offer(_record(f"n{number}", held), held.signed, Source.LOOKUP, now, wanted=False)
        return footprint([self.overlay, registry, registry.store])


def _record(name: str, held: Held) -> Record:
    """What a real node has decoded of a record."""
    return Record(
        name,
        "c",
        held.revision,
        held.until - LIFETIME,
        held.until,
        "0123456789abcdef" + name,
        (Address(f"10.0.{held.revision}.1", AddressSource.INTERFACE),),
        reservations=(Reservation("r1", held.until / 1e9), Reservation("r2", held.until / 2e9)),
    )


class Crowd:
    """What malicious nodes know together."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.nodes: dict[int, Node] = {}

    def colluders(self, key: int) -> list[Node]:
        """The malicious nodes nearest to a key."""
        return [self.nodes[it] for it in sorted(self.nodes, key=key.__xor__)[:K]]

    def invent(self, key: int) -> list[Node]:
        """Nodes that do not exist, nearer than any that does."""
        made = (self._rng.getrandbits(200) for _ in range(K))
        return [Node(key ^ it, f"x{it % 9973}", "198.51.100.1:20008") for it in made]


def footprint(roots: Iterable[object]) -> int:
    """Bytes of some objects and all they refer to. Bytes count each time: each record has its own in a real node. Words
    of an enumeration are the program's."""
    seen: set[int] = set()
    waiting, total = list(roots), 0
    while waiting:
        it = waiting.pop()
        if (id(it) in seen and not isinstance(it, bytes)) or isinstance(it, Enum):
            continue
        seen.add(id(it))
        total += sys.getsizeof(it)
        if isinstance(it, dict):
            waiting += [*it.keys(), *it.values()]
        elif isinstance(it, list | tuple | set):
            waiting += it
        else:
            names = (name for kind in type(it).__mro__ for name in getattr(kind, "__slots__", ()))
            waiting += [getattr(it, name) for name in names if hasattr(it, name)]
            if hasattr(it, "__dict__") and not isinstance(it, type):
                waiting.append(vars(it))
    return total
