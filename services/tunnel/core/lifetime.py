"""How long connections live where a NAT ends each at a certain age, used or not.

Some carriers do so after 50 to 75 s, and keepalives do not help (FAILURES 18). It is learnt from connections that were
lost, by path: from this host's address to the far end's. What tells such a cut from everything else:

- two losses at different times had the same age (within SLACK, SLACK_SHARE);
- no connection on that path lives, or lived since the first of them, to a greater age;
- nothing else was lost at the same moment at another age: an outage ends all connections, whatever their age.

The age of a loss is known between two bounds: something was heard then, and something was not answered any more.
Believed, connections are replaced in time. A belief is put to the test now and then, with a connection that nobody
needs at the moment: if that one outlives it, the belief is dropped.

Where two paths from one address of this host have the same lifetime it is the NAT in front of this host that cuts, and
not those of so many others: then it is believed of all paths from there, and new ones cost no cuts. One connection that
lives longer shows that it is not so.
"""

import itertools
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from random import Random

Path = tuple[str, str]
"""IP address of this host, IP address of the far end."""

SLACK, SLACK_SHARE = 3.0, 0.1
"""Two ages are the same within 3 s or 10 %: routers look through their tables now and then."""
VAGUE, VAGUE_SHARE = 6.0, 0.1
"""A loss whose age is not known within 6 s (a heartbeat of 5 s, and a round trip) or 10 % teaches nothing."""
TOGETHER = 2.0
"""Losses that may lie so many seconds apart, or less, have one cause."""
SHORTEST, LONGEST = 10.0, 3600.0
"""Ages, seconds. Below, replacing would be all this node does; above, a loss is too rare to matter."""
SAFE = 0.8
"""Share of the smallest age seen at which a connection is replaced at the latest …"""
SPREAD = 0.2
"""… and the part of that by which it may be earlier, so that active and standby do not go at once."""
LATE = 0.9
"""Share at which a connection that could not be replaced is left for another one, if there is one."""
TRIAL_FIRST, TRIAL_MOST = 600.0, 86400.0
"""Seconds from a cut that was seen to the next test of the belief, doubling with each that it stands."""
MAX_PATHS = 256
MAX_LOSSES = 32


@dataclass(slots=True)
class _Loss:
    """A connection that was lost. Its age was between `low` and `high` when it was cut, between `since` and `until`."""

    path: Path
    low: float
    high: float
    since: float
    until: float

    def same_time(self, other: "_Loss") -> bool:
        return max(self.since, other.since) - min(self.until, other.until) <= TOGETHER


@dataclass(slots=True)
class _Belief:
    """What the losses of one path say: all were between `low` and `high` old."""

    low: float
    high: float
    last: _Loss
    cuts: int = 1
    trial_at: float = 0.0
    trial_pause: float = TRIAL_FIRST / 2


def _alike(one: _Loss | _Belief, other: _Loss | _Belief) -> bool:
    """They may have the same age."""
    return max(one.low, other.low) - min(one.high, other.high) <= _slack(min(one.high, other.high))


def _slack(age: float) -> float:
    return max(SLACK, SLACK_SHARE * age)


class Lifetimes:
    """What is known of all paths. Times are those of one clock, ages seconds."""

    def __init__(self, dice: Random) -> None:
        self._dice = dice
        self._beliefs: dict[Path, _Belief] = {}
        self._losses: deque[_Loss] = deque(maxlen=MAX_LOSSES)
        self._shared: dict[str, _Belief] = {}
        """What holds for all paths from an address of this host."""
        self._apart: set[str] = set()
        """Addresses from which paths have shown that they are not alike."""

    def lost(self, path: Path, started: float, heard: float, asked: float) -> None:
        """A connection broke: it was last heard at `heard`, and what was asked at `asked` found no answer."""
        loss = _Loss(path, heard - started, max(asked, heard) - started, heard, max(asked, heard))
        strangers = [other for other in self._losses if loss.same_time(other) and not _alike(loss, other)]
        self._losses.append(loss)
        if strangers:
            for other in strangers:
                self._withdraw(other)
        elif (
            loss.high >= SHORTEST
            and loss.low <= LONGEST
            and loss.high - loss.low <= max(VAGUE, VAGUE_SHARE * loss.high)
        ):
            self._learn(loss)

    def lived(self, path: Path, started: float, heard: float) -> None:
        """A connection was there at this time."""
        local, age = path[0], heard - started
        if (own := self._beliefs.get(path)) is not None and age > own.high + _slack(own.high):
            self._drop(path)
        elif (
            self._own(path) is None
            and (shared := self._shared.get(local)) is not None
            and age > shared.high + _slack(shared.high)
        ):
            self._apart.add(local)
            del self._shared[local]

    def limit(self, path: Path) -> float | None:
        """The age that connections on this path do not outlive; None: nothing of that kind is known."""
        belief = self._own(path) or self._shared.get(path[0])
        return belief.low if belief is not None else None

    def due(self, path: Path, started: float, now: float, phase: float, *, expendable: bool) -> bool:
        """Whether a connection should be replaced now. `phase`: its own random number from 0 to 1; `expendable`:
        nobody would notice its loss, so it may serve to test the belief."""
        limit = self.limit(path)
        if limit is None or now - started < SAFE * limit * (1 - SPREAD * phase):
            return False
        own = self._own(path)
        return own is None or not (expendable and now >= own.trial_at)

    def late(self, path: Path, started: float, now: float) -> bool:
        """Whether a connection that is due will be cut before another attempt to replace it is likely to be over."""
        limit = self.limit(path)
        return limit is not None and now - started >= LATE * limit

    def forget(self, gone: Collection[str]) -> None:
        """This host has these addresses no more. Should one come back, it may be in another network."""
        self._losses = deque((loss for loss in self._losses if loss.path[0] not in gone), maxlen=MAX_LOSSES)
        for path in [path for path in self._beliefs if path[0] in gone]:
            self._drop(path)
        self._apart.difference_update(gone)

    def _own(self, path: Path) -> _Belief | None:
        """What this path's own losses say, where they are enough."""
        belief = self._beliefs.get(path)
        return belief if belief is not None and belief.cuts > 1 else None

    def _drop(self, path: Path) -> None:
        if self._beliefs.pop(path, None) is not None:
            self._share(path[0])

    def _share(self, local: str) -> None:
        """Looks anew whether paths from this address are alike."""
        believed = [it for (here, _), it in self._beliefs.items() if here == local and it.cuts > 1]
        believed.sort(key=lambda it: it.low)
        agreed = [one for one, other in itertools.pairwise(believed) if _alike(one, other)]
        self._shared.pop(local, None)
        if agreed and local not in self._apart:
            self._shared[local] = agreed[0]

    def _learn(self, loss: _Loss) -> None:
        belief = self._beliefs.get(loss.path)
        if belief is None or not _alike(loss, belief):
            self._drop(loss.path)
            if len(self._beliefs) >= MAX_PATHS:
                self._drop(min(self._beliefs, key=lambda path: self._beliefs[path].last.until))
            self._beliefs[loss.path] = _Belief(loss.low, loss.high, loss)
            return
        news = not loss.same_time(belief.last)
        # The smallest age counts, and of the greatest the one that is known best.
        belief.low, belief.high = min(belief.low, loss.low), max(belief.low, min(belief.high, loss.high), loss.low)
        belief.last = loss
        if not news:
            return
        belief.cuts += 1
        belief.trial_pause = min(2 * belief.trial_pause, TRIAL_MOST)
        belief.trial_at = loss.until + belief.trial_pause * self._dice.uniform(0.5, 1.5)
        self._share(loss.path[0])

    def _withdraw(self, loss: _Loss) -> None:
        """It was an outage."""
        belief = self._beliefs.get(loss.path)
        if belief is not None and belief.last is loss:
            belief.cuts -= 1
            if not belief.cuts:
                del self._beliefs[loss.path]
            self._share(loss.path[0])
