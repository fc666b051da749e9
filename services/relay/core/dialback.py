"""How often this relay connects back to those who ask what their NAT lets in.

A relay that dials on request is a tool, so it is a blunt one: it dials the asker's own IP only, no port below
FIRST_PORT, says nothing but random bytes, and does so rarely.
"""

from __future__ import annotations

from services.runtime.core.allowance import Allowance
from services.runtime.core.bucket import TokenBucket

FIRST_PORT = 1024
"""Lowest port dialled: below are the system's services (IANA's system ports), and no tunnel by default."""
PEER_RATE, PEER_BURST = 0.5, 30
"""Dials a second for one peer, and at once. A `netcheck` needs at most 5 of each relay; a person repeats it."""
RATE, BURST = 20.0, 100
"""Dials a second for all, and at once."""
MAX_OPEN = 32
"""Dials under way."""
MAX_PEERS = 1024
"""Peers whose past is remembered; beyond, the one that has not asked for longest is forgotten."""


class DialBacks:
    """Grants dials; each granted one is to be given back by `done`."""

    def __init__(self) -> None:
        self.open = 0
        self._all: TokenBucket | None = None
        self._peers = Allowance(PEER_RATE, PEER_BURST, capacity=MAX_PEERS)

    def wait(self, peer: str, now: float) -> float:
        """0: granted. Else how many seconds to wait before asking again."""
        self._all = self._all or TokenBucket(RATE, BURST, now)
        mine = self._peers.bucket(peer, now)
        wait = max(mine.wait(now), self._all.wait(now), 1.0 if self.open >= MAX_OPEN else 0.0)
        if not wait:
            mine.take(1, now)
            self._all.take(1, now)
            self.open += 1
        return wait

    def done(self) -> None:
        """A dial is over."""
        self.open -= 1

    def __len__(self) -> int:
        return len(self._peers)
