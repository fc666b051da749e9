"""One round of dials to this node: what is handed to whom, and who has not come back.

Who offers to dial (a vantage that this node cannot call) gets one token a round, and is expected again; a few such
regulars are enough, all others are told to come rarely.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

MAX_REGULARS = 8
"""Nodes that are asked to offer often."""
RARE = 1800.0
"""Seconds until the others offer again; one of the regulars may be gone by then."""
USUAL = 60.0
"""Seconds until a regular offers again, when nothing is urgent."""
YOUNG, SOON = 60.0, 2.0
"""A service that has run for less than YOUNG seconds may still be asked for a round: come again after SOON."""
REPORT = 20.0
"""Seconds for a dial and its report."""
GRACE = 8.0
"""Seconds that a regular may be late: it may have to find its way first."""
FORGOTTEN = 600.0
"""Seconds after which one that is late is no regular any more."""
MAX_HANDED = 64
"""Dials that were wished for and not yet reported; a slow one may outlast its round."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Dial this port of the address at which you called, and say the token there."""

    port: int
    token: bytes


class Round:
    """`pace`: seconds after which regulars come again."""

    def __init__(self, port: int, tokens: Iterable[bytes], pace: float) -> None:
        self.port = port
        self.pace = max(1.0, pace)
        self._tokens = deque(tokens)
        self._asked: set[str] = set()

    def open(self, vantage: str) -> bool:
        """Whether this vantage may be asked: it was not, and there are tokens."""
        return vantage not in self._asked and bool(self._tokens)

    def take(self, vantage: str = "") -> bytes | None:
        """A token for a dial; `vantage` is asked with it, and not again."""
        self._asked.add(vantage)
        return self._tokens.popleft() if self._tokens else None


class Regulars:
    """Those who offer, and when they are late. `now` is monotonic, seconds."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._due: dict[str, float] = {}
        self._handed: OrderedDict[bytes, str] = OrderedDict()

    def come(self, vantage: str, round: Round | None, now: float) -> tuple[Wish | None, float]:  # noqa: A002
        """It offers: what it is to dial, and after how many seconds it is to come again."""
        for name, due in list(self._due.items()):
            if now - due > FORGOTTEN:
                del self._due[name]
        if vantage not in self._due and len(self._due) >= MAX_REGULARS:
            return None, RARE
        wish = self._wish(vantage, round) if round is not None else None
        usual = SOON if now - self._began < YOUNG else USUAL
        again = round.pace if round is not None else usual
        self._due[vantage] = now + (REPORT if wish is not None else again) + GRACE
        return wish, again

    def _wish(self, vantage: str, round: Round) -> Wish | None:  # noqa: A002
        token = round.take(vantage) if round.open(vantage) else None
        if token is None:
            return None
        self._handed[token] = vantage
        if len(self._handed) > MAX_HANDED:
            self._handed.popitem(last=False)
        return Wish(round.port, token)

    def report(self, vantage: str, token: bytes) -> bool:
        """Whether such a dial was wished for from it, in this round or one before; once."""
        if self._handed.get(token) != vantage:
            return False
        del self._handed[token]
        return True

    def late(self, now: float) -> list[str]:
        """Those who should have come by now."""
        return [name for name, due in self._due.items() if due <= now]

    def next_late(self, now: float) -> float | None:
        """Seconds until the next one is late; None: nobody is expected."""
        return min((due - now for due in self._due.values() if due > now), default=None)

    def __len__(self) -> int:
        return len(self._due)
