"""Which backend the next client of a service port gets."""

import random
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

from services.proxy.core.catalog import Backend
from services.proxy.core.health import Health
from services.proxy.core.ring import HashRing
from services.proxy.core.silence import Silence
from services.proxy.core.topology import Levels
from services.proxy.core.traffic import Traffic

# Clients with a backend of their own (sessionAffinity) that are remembered; then the longest unseen is forgotten.
MAX_STICKY = 65_536
# Paths within this of the best are equally near (DESIGN.md §5): the larger of a time in seconds and a share.
NEAR, NEAR_SHARE = 0.010, 0.2

Backends = Sequence[Backend]


class Strategy(Protocol):
    """Chooses one of at least one, for the client of that key."""

    def choose(self, candidates: Backends, key: str) -> Backend: ...


class Balancer:
    """Spreads the clients of one service port. `rtts`: seconds to a node, and `relayed`: nodes that were reached through a
    relay, with the time until which that is believed; both kept by the owner."""

    def __init__(
        self,
        node: str,
        traffic: Traffic,
        rtts: Mapping[str, float],
        rng: random.Random,
        relayed: Mapping[str, float] | None = None,
    ) -> None:
        self._node = node
        self._rtts = rtts
        self._rng = rng
        self._relayed = relayed if relayed is not None else {}
        self.traffic = traffic
        self.backends: tuple[Backend, ...] = ()
        self._eligible: tuple[Backend, ...] = ()
        self._here: tuple[Backend, ...] = ()
        self.levels: Levels = ()
        self._sticky: OrderedDict[str, tuple[Backend, float]] = OrderedDict()
        self.health = Health()
        self.silence = Silence(self.health)
        # Clients who are on their way or connected, see `begin`; also of backends that are gone, until the last of them ends.
        self.active: Counter[Backend] = Counter()
        self._strategy: Strategy = RoundRobin()

    @property
    def counts(self) -> bool:
        """Whether the number of living connections matters."""
        return self.traffic.strategy in ("least-connections", "p2c")

    def update(self, backends: tuple[Backend, ...], traffic: Traffic, levels: Levels = ()) -> None:
        """From now on these, in this way; `levels`: whom to prefer. A change of the backends keeps the turn, the connections
        counted and the clients' own."""
        fresh = traffic != self.traffic or not self.backends
        self.traffic, self.backends = traffic, backends
        self._here = tuple(backend for backend in backends if backend.node == self._node)
        self._eligible = self._here if traffic.local else backends
        self.levels = levels
        self.health.keep(backends)
        self.silence.keep(backends)
        if traffic.hashed:
            ring = traffic.ring
            self._strategy = Hashed(HashRing(self._eligible, ring.partitions, ring.replicas, ring.load))
        elif fresh:
            self._strategy = self._made()

    def pick(self, client: str, now: float, tried: Backends = (), key: str = "") -> Backend | None:
        """A backend for a client (its IP without port) that `tried` some in vain. None: there is none left. `key`: to
        be hashed instead of the client's IP."""
        candidates: Backends = self._eligible
        if tried:
            candidates = [backend for backend in candidates if backend not in tried]
        if self.health:
            out = self.health.ejected(now)
            candidates = [backend for backend in candidates if backend not in out] or candidates
        if not candidates:
            return None
        candidates = self._preferred(candidates, now)
        backend = self._own(client, candidates, now) if self.traffic.sticky else None
        if backend is None:
            backend = self._strategy.choose(candidates, key or client) if len(candidates) > 1 else candidates[0]
            if self.traffic.sticky:
                self._remember(client, backend, now)
        if self.health:
            self.health.picked(backend, now)
        return backend

    def _preferred(self, candidates: Backends, now: float) -> Backends:
        """Those on this node if near ones are asked for; else those of the first level that has any; of these the near ones
        are on nodes over a direct path (or one not known yet: it shows). Else all."""
        near = self.traffic.near
        if near and self._here and (found := [backend for backend in candidates if backend.node == self._node]):
            return found
        if self.levels and candidates is self._eligible:
            candidates = self.levels[0]
        elif self.levels:
            well = set(candidates)
            found_in = ([backend for backend in level if backend in well] for level in self.levels)
            candidates = next(filter(None, found_in), candidates)
        if not near or not self._relayed:
            return candidates
        return [one for one in candidates if self._relayed.get(one.node, now) <= now] or candidates

    def spare(self, tried: Backends, now: float) -> bool:
        """Whether there is one that is well, and not among `tried`."""
        out = self.health.ejected(now) if self.health else ()
        return any(backend not in tried and backend not in out for backend in self._eligible)

    def begin(self, backend: Backend) -> bool:
        """A client is sent there. True: it counts until `end` is called for it, once, whatever the strategy is by then."""
        if self.counts:
            self.active[backend] += 1
        return self.counts

    def end(self, backend: Backend) -> None:
        """One that counted failed, or is over."""
        self.active[backend] -= 1
        if self.active[backend] <= 0:
            del self.active[backend]

    def _made(self) -> Strategy:
        match self.traffic.strategy:
            case "random":
                return Random(self._rng)
            case "least-latency":
                return LeastLatency(self._rtts, self._node, self._rng)
            case "least-connections":
                return LeastConnections(self.active, self._rng)
            case "p2c":
                return TwoChoices(self.active, self._rng)
        return RoundRobin()

    def _own(self, client: str, candidates: Backends, now: float) -> Backend | None:
        known = self._sticky.get(client)
        if known is None or known[1] <= now or known[0] not in candidates:
            return None
        self._remember(client, known[0], now)
        return known[0]

    def _remember(self, client: str, backend: Backend, now: float) -> None:
        self._sticky[client] = backend, now + self.traffic.sticky
        self._sticky.move_to_end(client)
        if len(self._sticky) > MAX_STICKY:
            self._sticky.popitem(last=False)


class RoundRobin:
    """Each in turn: over any run of choices without a change, counts differ by at most one.

    When the candidates change, the turn goes on behind the one that was chosen last.
    """

    def __init__(self) -> None:
        self._order: Backends = ()
        self._next = 0

    def choose(self, candidates: Backends, key: str) -> Backend:
        if candidates is not self._order and tuple(candidates) != tuple(self._order):
            self._change(candidates)
        backend = self._order[self._next]
        self._next = (self._next + 1) % len(self._order)
        return backend

    def _change(self, candidates: Backends) -> None:
        """The one whose turn it was stays next while it is still there, else the first behind it that is."""
        old, self._order = self._order, tuple(candidates)
        places = {backend: place for place, backend in enumerate(self._order)}
        waiting = (old[(self._next + step) % len(old)] for step in range(len(old)))
        self._next = next((places[backend] for backend in waiting if backend in places), 0)


class Random:
    """Any, each as likely."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, candidates: Backends, key: str) -> Backend:
        return self._rng.choice(candidates)


class LeastConnections:
    """One of those with the fewest living connections."""

    def __init__(self, active: Mapping[Backend, int], rng: random.Random) -> None:
        self._active = active
        self._rng = rng

    def choose(self, candidates: Backends, key: str) -> Backend:
        fewest = min(self._active[backend] for backend in candidates)
        return self._rng.choice([backend for backend in candidates if self._active[backend] == fewest])


class TwoChoices:
    """Of two drawn the one with fewer living connections (Mitzenmacher, 2001): no crowd runs to one backend."""

    def __init__(self, active: Mapping[Backend, int], rng: random.Random) -> None:
        self._active = active
        self._rng = rng

    def choose(self, candidates: Backends, key: str) -> Backend:
        one, other = self._rng.sample(candidates, 2)
        return one if self._active[one] <= self._active[other] else other


class LeastLatency:
    """One of those about as near as the nearest; a node whose path was never measured is tried first."""

    def __init__(self, rtts: Mapping[str, float], node: str, rng: random.Random) -> None:
        self._rtts = rtts
        self._node = node
        self._rng = rng

    def choose(self, candidates: Backends, key: str) -> Backend:
        rtts = [0.0 if it.node == self._node else self._rtts.get(it.node, 0.0) for it in candidates]
        best = min(rtts)
        most = best + max(NEAR, NEAR_SHARE * best)
        return self._rng.choice([backend for backend, rtt in zip(candidates, rtts, strict=True) if rtt <= most])


class Hashed:
    """The same backend for a key while it is there. A client's address is a key without its port (FAILURES 33)."""

    def __init__(self, ring: HashRing[Backend]) -> None:
        self._ring = ring

    def choose(self, candidates: Backends, key: str) -> Backend:
        return self._ring.pick(key, candidates) or candidates[0]
