"""Who is near whom: the routing table of the DHT (Kademlia, Maymounkov and Mazières 2002).

It never calls anybody. `heard` returns whom to ping: when a bucket is full, the one that was silent longest has to
answer, or else makes room. So nodes that have been there for long stay, and a flood of new names changes nothing.
Ids are `node_id`s, SHA-256; nearness is XOR.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

# Nodes in a bucket, and in an answer (k of the paper and of go-libp2p).
K = 20
# Nodes of one network (IPv4 /24, IPv6 /48) in a bucket: who has many addresses there gets no more (go-libp2p: 3).
MAX_GROUP = 3
# Seconds that a node which did not answer is left alone, and how many such nodes are remembered.
REST, MAX_RESTING = 300.0, 256
# Seconds between two pings that newcomers bring upon a full bucket: a crowd of them must not multiply messages.
CHECK = 60.0


@dataclass(frozen=True, slots=True)
class Node:
    """A server of the DHT. `where`: "ip:port,…", one string, since a table holds hundreds of them: where it answered,
    then what its configuration advertises. `near`: it answered on a network of our own, where others may not be."""

    id: int
    name: str
    where: str
    near: bool = False

    @property
    def host(self) -> str:
        """Its first address."""
        return self.where.partition(",")[0].rpartition(":")[0].strip("[]")

    @property
    def group(self) -> str:
        """The network of its first address."""
        host = self.host
        return ipaddress.ip_address(host).exploded[:14] if ":" in host else host.rpartition(".")[0]


class Table:
    """Servers by distance from `own`. A bucket is a dict, least recently heard first.

    One failure is a doubt: it may be our own network that failed (FAILURES 27). A node leaves when it failed twice
    and somebody else answered in between, near or far as it is; so an outage of the host, or of its uplink only,
    costs nobody a place however long it is.

    Invariants: at most `k` nodes a bucket, at most one spare for each, neither `own` nor a node without an address
    anywhere, and only nodes in buckets are doubted.
    """

    def __init__(self, own: int, *, k: int = K, max_group: int = MAX_GROUP) -> None:
        self.own = own
        self._k = k
        self._max_group = max_group
        self._buckets: dict[int, dict[int, Node]] = {}
        self._spares: dict[int, Node] = {}
        self._checked: dict[int, float] = {}
        self._resting: dict[int, float] = {}
        # How many answers there had been at a node's first failure.
        self._doubts: dict[int, int] = {}
        self._answers = {True: 0, False: 0}

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def __iter__(self) -> Iterator[Node]:
        return (node for bucket in self._buckets.values() for node in bucket.values())

    def __contains__(self, node_id: int) -> bool:
        return self.get(node_id) is not None

    def get(self, node_id: int) -> Node | None:
        """The node with an id, if it is in the table."""
        return self._buckets.get((node_id ^ self.own).bit_length(), {}).get(node_id)

    def heard(self, node: Node, now: float) -> Node | None:
        """It answered a call of ours: the proof that it can be reached. Returns whom to ping, if anybody: tell the
        table `heard` or `failed` of it."""
        self._answers[node.near] += 1
        self._doubts.pop(node.id, None)
        self._resting.pop(node.id, None)
        index = (node.id ^ self.own).bit_length()
        if not index or not node.where:
            return None
        bucket = self._buckets.setdefault(index, {})
        if bucket.pop(node.id, None) is not None:
            bucket[node.id] = node
            return None
        if len(bucket) < self._k:
            if not self._crowded(bucket, node):
                bucket[node.id] = node
            return None
        # The newest newcomer waits: it is the one most likely to be still there.
        self._spares[index] = node
        if 0 <= now - self._checked.get(index, now - CHECK) < CHECK:
            return None
        self._checked[index] = now
        return next(iter(bucket.values()))

    def failed(self, node_id: int, now: float) -> None:
        """It did not answer. A stranger, or who failed before while others answer, is left alone for a while; the
        newcomer that waits gets the place in the table."""
        index = (node_id ^ self.own).bit_length()
        bucket = self._buckets.get(index, {})
        known = bucket.get(node_id)
        if known is not None:
            answers = self._answers[known.near]
            if self._doubts.setdefault(node_id, answers) == answers:
                return
            del bucket[node_id], self._doubts[node_id]
            spare = self._spares.pop(index, None)
            if spare is not None and not self._crowded(bucket, spare):
                bucket[spare.id] = spare
        # All rest equally long, so the first to have failed is the first to be over.
        self._resting.pop(node_id, None)
        while self._resting and (len(self._resting) >= MAX_RESTING or next(iter(self._resting.values())) <= now):
            del self._resting[next(iter(self._resting))]
        self._resting[node_id] = now + REST

    def doubted(self, node_id: int) -> bool:
        """It is in the table, but did not answer the last time."""
        return node_id in self._doubts

    def resting(self, node_id: int, now: float) -> bool:
        """It failed lately: not worth a call."""
        until = self._resting.get(node_id)
        if until is None:
            return False
        if until <= now:
            del self._resting[node_id]
            return False
        return True

    def wants(self, node_id: int, now: float) -> bool:
        """Whether one that called us is worth a call back, which alone would bring it into the table."""
        index = (node_id ^ self.own).bit_length()
        bucket = self._buckets.get(index, {})
        return bool(index) and node_id not in bucket and len(bucket) < self._k and not self.resting(node_id, now)

    def forgive(self) -> None:
        """The network changed: nobody's failures count any more."""
        self._resting.clear()
        self._spares.clear()
        self._doubts.clear()

    def nearest(self, target: int, count: int = K) -> list[Node]:
        """The nodes nearest to a key, nearest first."""
        index = (target ^ self.own).bit_length()
        found = dict(self._buckets.get(index, ()))
        if len(found) < count:
            # All buckets below are equally far from the target's but for lower bits; those above are farther, in order.
            for other, bucket in self._buckets.items():
                if other < index:
                    found |= bucket
            for other in sorted(other for other in self._buckets if other > index):
                if len(found) >= count:
                    break
                found |= self._buckets[other]
        return [found[node_id] for node_id in sorted(found, key=target.__xor__)[:count]]

    def eldest(self, choice: float) -> Node | None:
        """The least recently heard node of one bucket; `choice` in [0, 1) selects which."""
        filled = [bucket for bucket in self._buckets.values() if bucket]
        return next(iter(filled[int(choice * len(filled))].values())) if filled else None

    def size(self, bits: int = 256) -> float:
        """How many servers there are, estimated from how near the nearest are."""
        nearest = self.nearest(self.own, self._k)
        if len(nearest) < self._k:
            return float(len(self))
        return len(nearest) * float(2**bits) / float(nearest[-1].id ^ self.own)

    def _crowded(self, bucket: dict[int, Node], node: Node) -> bool:
        """Private networks are not counted: nobody has addresses to spare there that others could call."""
        group = node.group
        same = sum(other.group == group for other in bucket.values())
        return same >= self._max_group and ipaddress.ip_address(node.host).is_global
