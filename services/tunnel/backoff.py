"""How one way to a peer fared so far, and when it may be tried again."""

import random
from dataclasses import dataclass

FIRST = 0.2
"""Seconds after the first failure, doubling."""
REST = 0.2
"""Seconds after a success: should the new link be lost before it carried anything, the way is not tried again at once."""


@dataclass(slots=True)
class Backoff:
    """Of one candidate. Times in seconds."""

    failures: int = 0
    """In a row."""
    until: float = 0.0
    """Not to be tried before."""
    why: str = ""
    """The last failure, for people."""

    def fail(self, now: float, why: str, most: float, least: float = 0.0) -> None:
        """It failed. `most`: longest pause of our own choice; `least`: what the other side asked for."""
        delay = min(FIRST * 2 ** min(self.failures, 12), most)
        self.failures += 1
        self.until = now + max(delay * random.uniform(0.5, 1.5), least)
        self.why = why

    def succeed(self, now: float) -> None:
        """It worked."""
        self.failures, self.why, self.until = 0, "", now + REST
