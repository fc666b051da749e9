"""An iterative lookup as a machine: `ask` says whom to ask next, `answered` and `failed` are what came of it.

What others name is hearsay. A liar can name nodes that do not exist, nearer than any real one; it costs us a
timeout each, so what only a node with LIES dead ones has named comes last. A record counts when its signature
holds (the caller sees to that, and reports a bad one as `failed`); of several the newest revision wins, and a
search goes on until `quorum` of them have come, as one holder may be behind, or lie.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from .routing import K, Node

V = TypeVar("V")

# Questions at once (alpha of the Kademlia paper).
ALPHA = 3
# Records compared before the newest is believed: with a fifth of the holders lying, three stale ones in a row are 0.8 %.
QUORUM = 3
# Questions of one search at most; an honest one over 10,000 nodes needs about a dozen.
MAX_ASKED = 64
# Dead nodes named by one node before the others that only it named come last.
LIES = 3


class State(Enum):
    """Of a candidate."""

    WAITING = 1
    ASKED = 2
    ANSWERED = 3
    FAILED = 4


@dataclass(slots=True)
class Candidate:
    """A node that may be asked. `by`: the only one that named it; 0: the own table, or several. `depth`: hops from here."""

    node: Node
    depth: int
    by: int
    state: State = State.WAITING


class Search(Generic[V]):
    """Looks for the `width` nodes nearest to `target`, and for a record there if `quorum` is not 0.

    Invariant: `_order` holds the XOR distances of all candidates that have not failed, in order.
    """

    def __init__(
        self,
        target: int,
        own: int,
        start: Iterable[Node],
        *,
        width: int = K,
        quorum: int = 0,
        alpha: int = ALPHA,
        max_asked: int = MAX_ASKED,
    ) -> None:
        self.target = target
        self.best: V | None = None
        self.hops = 0
        self.asked = 0
        self._own = own
        self._width = width
        self._quorum = quorum
        self._alpha = alpha
        self._max_asked = max_asked
        self._candidates: dict[int, Candidate] = {}
        self._order: list[int] = []
        self._running = 0
        self.revision = 0
        self._records = 0
        self._lies: dict[int, int] = {}
        self._add(start, 1, 0)

    @property
    def done(self) -> bool:
        """Nothing runs, and nothing is left to ask."""
        return self._satisfied or (not self._running and self._next() is None)

    def ask(self) -> list[Node]:
        """Whom to ask now, with those already running `alpha` at most. Each is to be reported back."""
        found: list[Node] = []
        while not self._satisfied and self._running < self._alpha:
            candidate = self._next()
            if candidate is None:
                break
            candidate.state = State.ASKED
            self._running += 1
            self.asked += 1
            found.append(candidate.node)
        return found

    def answered(self, node: Node, named: Iterable[Node], record: V | None = None, revision: int = 0) -> None:
        """It answered: with nodes that it thinks near, and perhaps with a valid record."""
        candidate = self._end(node, State.ANSWERED)
        if candidate is None:
            return
        self._add(named, candidate.depth + 1, node.id)
        if record is not None:
            self._records += 1
            if self.best is None or revision > self.revision:
                self.best, self.revision = record, revision
            self.hops = self.hops or candidate.depth

    def failed(self, node: Node) -> None:
        """It did not answer, or with something invalid."""
        candidate = self._end(node, State.FAILED)
        if candidate is None:
            return
        self._order.remove(node.id ^ self.target)
        if candidate.by:
            self._lies[candidate.by] = self._lies.get(candidate.by, 0) + 1

    def nearest(self) -> list[Node]:
        """Those that answered, nearest first, at most `width`."""
        live = (self._candidates[distance] for distance in self._order)
        return [candidate.node for candidate in live if candidate.state is State.ANSWERED][: self._width]

    @property
    def _satisfied(self) -> bool:
        return bool(self._quorum) and self._records >= self._quorum

    def _next(self) -> Candidate | None:
        """The nearest candidate to ask that is among the `width` nearest alive. What only liars named comes last, when
        there is not much else: three dead nodes may be an outage, too."""
        if self.asked >= self._max_asked:
            return None
        others = 0
        doubted: Candidate | None = None
        for distance in self._order:
            candidate = self._candidates[distance]
            if candidate.state is State.WAITING:
                if self._lies.get(candidate.by, 0) < LIES:
                    return candidate
                doubted = doubted or candidate
                continue
            others += 1
            if others >= self._width:
                return None
        return doubted

    def _end(self, node: Node, state: State) -> Candidate | None:
        candidate = self._candidates.get(node.id ^ self.target)
        if candidate is None or candidate.state is not State.ASKED:
            return None
        candidate.state = state
        self._running -= 1
        return candidate

    def _add(self, nodes: Iterable[Node], depth: int, by: int) -> None:
        for _, node in zip(range(K), nodes, strict=False):
            distance = node.id ^ self.target
            known = self._candidates.get(distance)
            if known is not None:
                if known.by != by:
                    known.by = 0
            elif node.id != self._own and node.where:
                self._candidates[distance] = Candidate(node, depth, by)
                insort(self._order, distance)
