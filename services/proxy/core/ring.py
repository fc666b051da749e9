"""A consistent hash with bounded loads: a key keeps its member while members come and go.

The key space is cut into partitions; each belongs to the first member behind it on a circle that is not full yet
(Mirrokni, Thorup, Zadimoghaddam: "Consistent Hashing with Bounded Loads", 2016).
"""

import bisect
import hashlib
import math
from collections.abc import Collection, Sequence
from typing import Generic, TypeVar

M = TypeVar("M")


class HashRing(Generic[M]):
    """Members are told apart by `str`. The same on every node: nothing in here is drawn."""

    def __init__(self, members: Sequence[M], partitions: int, replicas: int, load: float) -> None:
        """`load`: most partitions of a member, by the average; at least 1."""
        self._partitions = partitions
        circle = sorted(
            (_hash(f"{member}#{point}"), place) for place, member in enumerate(members) for point in range(replicas)
        )
        self._members = tuple(members)
        self._points = [point for point, _ in circle]
        self._places = [place for _, place in circle]
        self._owners = self._assign(math.ceil(partitions / len(members) * load)) if members else []

    def pick(self, key: str, allowed: Collection[M]) -> M | None:
        """The member of `key`; while it is not among `allowed`, the next on the circle that is. None: none is."""
        if not self._members:
            return None
        partition = _hash(key) % self._partitions
        owner = self._members[self._owners[partition]]
        if owner in allowed:
            return owner
        start = self._start(partition)
        for step in range(len(self._places)):
            member = self._members[self._places[(start + step) % len(self._places)]]
            if member in allowed:
                return member
        return None

    def _start(self, partition: int) -> int:
        return bisect.bisect(self._points, _hash(f"partition {partition}")) % len(self._points)

    def _assign(self, most: int) -> list[int]:
        held = [0] * len(self._members)
        owners = []
        for partition in range(self._partitions):
            step = self._start(partition)
            while held[self._places[step]] >= most:
                step = (step + 1) % len(self._places)
            owners.append(self._places[step])
            held[self._places[step]] += 1
        return owners


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
