"""Which relays a node holds, and which one a pair of nodes meets at. Times in seconds, loads in permille (0 to 1000).

A pair is decided by one side, the session's initiator; its word goes to the other, so both end on the same relay. Among
relays that are about equally near the pair's names decide by hash, and the one of two that carries less: the crowd
spreads without a word between nodes, and a relay that returns moves nobody who is as well off where he is. The warm
standbys spread as well: the pairs of a relay that dies divide over those that remain.

Load moves new pairs, old ones only away from a relay over its limit, and of those no more than make it fit: everybody
sees the load that everybody's moves make, some seconds late, and would run from one relay to the other and back.
"""

import hashlib
import ipaddress
import json
import random
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

REMEMBERED = 300.0
"""Seconds for which a round trip counts (Tailscale netcheck: best latency of the last 5 min)."""
FULL_ROUND = 300.0
"""Seconds between rounds of probes to all known relays (Tailscale: 5 min)."""
PARTIAL_ROUND = (20.0, 26.0)
"""Seconds between partial rounds, at random (Tailscale)."""
PARTIAL = 3
"""Relays of a partial round: the nearest that no control connection measures anyway (DESIGN §5: the best 2-3)."""
MOST_PROBED = 64
"""Relays of a full round; more are left to their rank."""
BAND_SECONDS, BAND_SHARE = 0.010, 0.2
"""What costs at most max(10 ms, 20 %) more than the best is as good (DESIGN §5)."""
GAIN_SECONDS, GAIN_SHARE = 0.010, 1 / 3
"""A move must gain both: 10 ms and a third (Tailscale: stays when old - best < 10 ms or best > 2/3 old)."""
LOAD_LIMIT, LOAD_BACK = 800, 600
"""Permille from which a relay gets no new pairs while others serve, the rest being room for those that it has; and below
which pairs that run elsewhere may move to it: what comes back must not be what fills it again."""
LEAVE_SHARE = 0.2
"""Share of the pairs too many that leave a relay over its limit at each look (every 2 s): all of them in about 10 s, two
of its heartbeats, so that the moves are seen in its load before they have gone too far."""
LOAD_STEP = 100
"""Permille by which loads must differ to count in a choice of two: twice what is worth a new record (relay/core/report)."""
MOVE_EVERY = 0.5
"""Seconds between two moves of a node: a move costs both ends a dial (OpenZiti: at most 2 % of circuits a minute)."""
MAX_NAME = 253
"""Characters of a node's name (DNS)."""
SMEAR = 15.0
"""Seconds over which nodes begin to move to a relay that is new or has returned, each at a time of its own."""


class Nearness:
    """Round trip to one relay: the best of the last REMEMBERED seconds."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()  # when it was taken, and seconds; both grow

    def sample(self, seconds: float, now: float) -> None:
        while self._samples and self._samples[-1][1] >= seconds:
            self._samples.pop()
        if len(self._samples) >= MOST_PROBED:  # no honest client measures so often
            self._samples.popleft()
        self._samples.append((now, seconds))

    def best(self, now: float) -> float | None:
        """None: not measured in that time."""
        while self._samples and now - self._samples[0][0] > REMEMBERED:
            self._samples.popleft()
        return self._samples[0][1] if self._samples else None


@dataclass(frozen=True, slots=True)
class Relay:
    """A relay in one node's eyes. `rank` in relayNodes, 0: earned; `rtt` None: not known."""

    name: str
    domain: str
    rank: int
    rtt: float | None
    load: int


def domain(ip: str) -> str:
    """The failure domain of an address: its /24 or /48 where it is public. A private network says nothing of who shares
    what, so each of its addresses is one."""
    parsed = ipaddress.ip_address(ip)
    if not parsed.is_global:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, 24 if parsed.version == 4 else 48), strict=False))


def cost(seconds: float, load: int) -> float:
    """A round trip, longer by the time one waits in a queue that is `load` full: 1 / (1 - load), at most tenfold."""
    return seconds * 1000 / (1000 - min(load, 900))


def worth(old: float, new: float) -> bool:
    """Whether a move from one cost to another pays."""
    return old - new >= max(GAIN_SECONDS, GAIN_SHARE * old)


def prefer(relays: Iterable[Relay], held: Collection[str]) -> list[str]:
    """Relays in the order in which to hold reservations: configured, then earned, the nearest first. One that is held
    keeps its place unless another is clearly nearer; one in a failure domain that a better one is in comes last."""
    order: list[Relay] = []
    for relay in sorted(relays, key=lambda it: (it.rank == 0, it.name not in held, it.rank, it.name)):
        place = len(order)
        while place and _before(relay, order[place - 1]):
            place -= 1
        order.insert(place, relay)
    first: dict[str, Relay] = {}
    for relay in order:
        first.setdefault(relay.domain, relay)
    apart = list(first.values())
    return [relay.name for relay in (*apart, *(relay for relay in order if relay not in apart))]


def _before(one: Relay, other: Relay) -> bool:
    if (one.rank == 0) != (other.rank == 0) or one.rtt is None or other.rtt is None:
        return False
    return worth(cost(other.rtt, other.load), cost(one.rtt, one.load))


# ---------------------------------------------------------------- a pair


def encode_word(relay: str) -> bytes:
    """The note by which the initiator tells the relay."""
    return json.dumps({"relay": relay}).encode()


def decode_word(note: bytes) -> str | None:
    """What such a note names; None when it is another one, or none at all."""
    try:
        relay = json.loads(note)["relay"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return relay if isinstance(relay, str) and len(relay) <= MAX_NAME else None


@dataclass(frozen=True, slots=True)
class Option:
    """A relay at which a pair may meet. `rtt`: rtt(A, relay) + rtt(relay, B), None where one is not known; `used`:
    sessions of the deciding node that run through it."""

    relay: str
    rtt: float | None
    load: int = 0
    used: int = 0

    @property
    def cost(self) -> float:
        return cost(self.rtt, self.load) if self.rtt is not None else float("inf")


BETTER, LOAD, DRAIN, FAILOVER, RETURN = "better", "load", "drain", "failover", "return"
"""Why a session moves to another relay: one that is nearer; away from one over its limit, one that stops, one that is
lost; back to the one that it had to leave."""


@dataclass(frozen=True, slots=True)
class Decision:
    """`why`: one line for a person; `cause` of a move: BETTER or LOAD."""

    relay: str
    why: str
    cause: str = BETTER


@dataclass(frozen=True, slots=True)
class Use:
    """A node's sessions by relay. `without`: the relay that a pair runs through now and needs a standby for; sessions
    that run there, too, count where their standbys are, as they will if it dies. Empty: it has none."""

    without: str
    sessions: Mapping[str, int]


def order(options: Iterable[Option], pair: frozenset[str]) -> list[Option]:
    """The best first; those over their limit last."""
    everything = sorted(options, key=lambda it: (it.load >= LOAD_LIMIT, it.cost, _lot(pair, it.relay)))
    fit = [it for it in everything if it.load < LOAD_LIMIT] or everything
    if not fit:
        return []
    limit = fit[0].cost + max(BAND_SECONDS, BAND_SHARE * fit[0].cost)
    band = sorted((it for it in fit if it.cost <= limit), key=lambda it: _lot(pair, it.relay))
    band[:2] = sorted(band[:2], key=lambda it: (it.load // LOAD_STEP, it.used))  # the power of two choices
    return band + [it for it in everything if it not in band]


def standbys(options: Iterable[Option], active: str, pair: frozenset[str]) -> list[Option]:
    """Where a pair that meets at `active` should have its warm standby, the best first. Relays that the pair would not
    leave for the best of them are as good: of these the one that would carry least if `active` died (`used`)."""
    ranked = order((it for it in options if it.relay != active), pair)
    if not ranked:
        return []
    best = ranked[0]
    alike = [it for it in ranked if it.load < LOAD_LIMIT and not worth(it.cost, best.cost)]
    alike.sort(key=lambda it: (it.load // LOAD_STEP, it.used, _lot(pair, it.relay)))
    return alike + [it for it in ranked if it not in alike]


def standby_of(options: Iterable[Option], active: str, current: str, pair: frozenset[str]) -> str:
    """Where that standby should be which is at `current` now: there, unless another place is better by two sessions, or
    `current` will not do. Better by one it is for the pair's lot to say: moved by that alone it would move back, and if
    all stayed, every node with an odd number of sessions would leave the same relay the fuller. Empty: nowhere."""
    ranked = standbys(options, active, pair)
    if not ranked:
        return ""
    best, now = ranked[0], next((it for it in ranked if it.relay == current), None)
    if now is None or best.load >= LOAD_LIMIT:
        return current
    more = now.used - best.used
    stays = more < 1 or (more == 1 and _lot(pair, now.relay) < _lot(pair, best.relay))
    even = now.load < LOAD_LIMIT and not worth(now.cost, best.cost) and stays
    return current if even else best.relay


def decide(options: Sequence[Option], current: str, pair: frozenset[str], luck: float = 1.0) -> Decision | None:
    """Where the pair should meet, which is at `current` ("": nowhere yet) unless a move pays. None: nowhere.

    `luck`, at random in [0, 1): whether this pair is of those that leave a relay over its limit (LEAVE_SHARE).
    """
    ranked = order(options, pair)
    if not ranked:
        return None
    best = ranked[0]
    now = next((it for it in options if it.relay == current), None)
    if now is None:
        return Decision(best.relay, f"the best of {len(ranked)}: {_of(best)}")
    if best is now:
        return Decision(current, f"the best of {len(ranked)}: {_of(now)}")
    if now.rtt is None or best.rtt is None:
        return Decision(current, f"not both are measured: {_of(now)}, {_of(best)}")
    if best.load >= LOAD_BACK:
        return Decision(current, f"a move would fill the other: {_of(now)}, {_of(best)}")
    if worth(now.rtt, best.rtt) and worth(now.cost, best.cost):
        return Decision(best.relay, f"{_of(best)} instead of {_of(now)}")
    if now.load >= LOAD_LIMIT and worth(now.cost, best.cost):
        if luck < LEAVE_SHARE * (1 - LOAD_LIMIT / now.load):
            return Decision(best.relay, f"{_of(best)} instead of {_of(now)}, which is over its limit", LOAD)
        return Decision(current, f"over its limit, others leave first: {_of(now)}, {_of(best)}")
    return Decision(current, f"a move would gain too little: {_of(now)}, {_of(best)}")


def _of(option: Option) -> str:
    far = "not measured" if option.rtt is None else f"{option.rtt * 1000:.1f} ms"
    return f"{option.relay} {far} for both at load {option.load / 10:.0f} %"


def _lot(pair: frozenset[str], relay: str) -> bytes:
    """What fate gives a pair at a relay (rendezvous hashing): a relay that goes or comes moves only its own pairs."""
    return hashlib.blake2b("\0".join((*sorted(pair), relay)).encode(), digest_size=8).digest()


class Pace:
    """When this node may move a session to another relay: one at a time, and none at once to a relay that just came."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._open_at: dict[str, float] = {}
        self._next = 0.0

    def see(self, relays: Collection[str], now: float) -> None:
        """Relays that serve this node now."""
        for name in self._open_at.keys() - set(relays):
            del self._open_at[name]
        for name in relays:
            if name not in self._open_at:
                self._open_at[name] = now + self._rng.uniform(0.0, SMEAR)

    def may(self, relay: str, now: float) -> bool:
        """True: move now, and count it as done."""
        if now < self._next or now < self._open_at.get(relay, now):
            return False
        self._next = now + MOVE_EVERY
        return True


class Rounds:
    """Which relays to probe when."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._full_at = self._partial_at = float("-inf")
        self._asked: set[str] = set()

    def due(self, relays: Sequence[str], now: float) -> list[str]:
        """Of `relays`, the nearest first, those to be probed now. A relay that is new is not kept waiting."""
        if now >= self._full_at:
            self._full_at = now + FULL_ROUND
            chosen = list(relays[:MOST_PROBED])
        else:
            chosen = [name for name in relays[:MOST_PROBED] if name not in self._asked]
            if now >= self._partial_at:
                chosen += [name for name in relays[:PARTIAL] if name not in chosen]
        if now >= self._partial_at:
            self._partial_at = now + self._rng.uniform(*PARTIAL_ROUND)
        self._asked = (self._asked & set(relays)) | set(chosen)
        return chosen
