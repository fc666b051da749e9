"""When a service that ended is started again. Pure: time and chance are arguments."""

from __future__ import annotations

import random

# Short enough that a single crash is a hiccup (a client's retry bridges it), long enough that a service that
# cannot start takes no noticeable share of a core.
FIRST_DELAY = 0.2  # seconds
LAST_DELAY = 10.0  # seconds
HEALTHY_AFTER = 30.0  # seconds of running after which earlier crashes are forgotten
JITTER = 0.2  # share of the delay that is random, so that nodes that failed together do not start together


class Backoff:
    """The delays of one service: doubling from FIRST_DELAY to LAST_DELAY, forgotten after HEALTHY_AFTER."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._started = 0.0
        self._failures = 0

    def started(self, now: float) -> None:
        """The service was started at `now` (monotonic seconds)."""
        self._started = now

    def ended(self, now: float) -> float:
        """The service ended at `now`; returns how many seconds to wait before the next start."""
        if now - self._started >= HEALTHY_AFTER:
            self._failures = 0
        # Beyond 2^16 the delay is at its cap anyway; the bound keeps the power small for ever.
        delay = min(LAST_DELAY, FIRST_DELAY * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return delay * (1 - JITTER * self._rng.random())
