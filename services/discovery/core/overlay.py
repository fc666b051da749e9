"""What one node is to the DHT: its routing table, the records it keeps for others, and the relays it has heard of.

Servers are nodes that answered a call of ours; a node behind a NAT never does, so it asks and publishes like any
other, but stands in nobody's table. Relays need no key of their own, which all nodes would ask the same few holders
for: every answer to a ping carries a few relays' records. Each node pings one of its table at a steady pace, so
news of a relay spreads as a rumour does: by the whole mesh in a few rounds, and nobody is asked more than others.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

from .model import Record, Signed
from .records import Held, RecordStore
from .routing import K, Node, Table
from .rumours import Rumours
from .search import QUORUM, Search

# Servers at which a node's record is kept. All eight being liars where a fifth of all nodes lie: 3 in a million.
COPIES = 8
# Servers beyond which a mesh is a large one.
LARGE = 200
# Records of relays in an answer.
RELAYS_TOLD = 4
# Seconds between two looks for the nearest servers, and into a far corner (go-libp2p refreshes buckets every 10 min).
REFRESH = 600.0
# Seconds between two pings: 5 in a small mesh, so that a new relay is known everywhere within 10 s, growing with it to
# 60, where table and rumours have more to live on.
MIN_PACE, MAX_PACE, PACE_PER_SERVER = 5.0, 60.0, 0.05
# Pauses after which a node pings, however often others have pinged it: only who answers its calls is there for certain.
MAX_REST = 3


class Overlay:
    """The DHT of the node with the id `own`."""

    def __init__(self, own: int) -> None:
        self.own = own
        self.table = Table(own)
        self.records = RecordStore(own)
        self.relays = Rumours(own)
        self._pinged_at = -math.inf

    # As a server

    def named(self, target: int, asker: int, *, near: bool = False) -> list[Node]:
        """The servers that an asker is told of: none that did not answer the last time, and none that it could not
        reach, as far as we can tell (FAILURES 26). `near`: the asker is on a network of our own."""
        found: list[Node] = []
        for node in self.table.nearest(target):
            # Where a neighbour answered us is for neighbours.
            where = node.where if near or not node.near else node.where.partition(",")[2]
            if where and node.id != asker and not self.table.doubted(node.id):
                found.append(node if where == node.where else replace(node, where=where))
        return found

    def pinged(self, caller: int, now: float) -> None:
        """By another server: with that, each has told the other of relays."""
        if self.table.get(caller) is not None:
            self._pinged_at = now

    def told(self, now: float, rng: random.Random) -> list[Held]:
        """The relays that an asker is told of."""
        return self.relays.sample(RELAYS_TOLD, now, rng)

    # As one who asks

    def seek(self, key: int, start: list[Node], now: float, *, alone: bool = False) -> Search[Signed]:
        """A search for the record under a key, or with `alone` for the servers that should keep it.

        `start` are first contacts; they are asked beside what the table knows. `now` is of the table's clock.
        """
        near = self.table.nearest(key)
        # When all are in doubt, it was most likely our own network.
        known = [node for node in near if not self.table.doubted(node.id)] or near
        start = known[: K - len(start)] + [node for node in start if not self.table.resting(node.id, now)]
        if alone:
            return Search(key, self.own, start, width=COPIES)
        return Search(key, self.own, start, quorum=QUORUM)

    @property
    def large(self) -> bool:
        """So many servers that a holder hardly ever wants those whose records it keeps."""
        return self.table.size() > LARGE

    def meet_relay(self, key: int, record: Record, signed: Signed, now: float) -> bool:
        """A verified record that says whether its subject is a relay; True when it is news of one. Raises
        DiscoveryError for what cannot be kept."""
        if key == self.own:
            return False
        if record.relay is None or record.relay.draining:
            known = self.relays.get(key, now)
            if known is not None and known.revision < record.revision:
                self.relays.discard(key)
            return False
        return self.relays.put(key, record, signed, now)

    def corner(self, rng: random.Random) -> int:
        """A key somewhere else: looking for it fills buckets that nothing else would."""
        return self.own ^ rng.getrandbits(rng.randint(1, 256))

    def due(self, began: float, pause: float, strangers: bool) -> float:
        """When to ping, on the clock of `began`, the moment of the last one: `pause` seconds after the last ping between
        this node and a server of its table, whoever began it, for one serves both. Not put off when there are strangers
        to call."""
        if strangers:
            return began + pause
        return min(max(began, self._pinged_at) + pause, began + MAX_REST * pause)

    def pace(self) -> float:
        """Seconds until the next ping."""
        return min(max(self.table.size() * PACE_PER_SERVER, MIN_PACE), MAX_PACE)
