"""How often a caller may call: a token bucket for each, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict

# Calls a second, and at once. A node in a mesh of 10,000 makes less than one call in 5 s to everybody together; the
# relay of 500 restarting nodes gets one from each.
RATE, BURST = 10.0, 100.0
# Callers remembered; who is forgotten begins with a full bucket.
MAX_CALLERS = 1024


class Allowance:
    """By name of the caller, which its certificate proves."""

    def __init__(self, *, rate: float = RATE, burst: float = BURST, capacity: int = MAX_CALLERS) -> None:
        self._rate = rate
        self._burst = burst
        self._capacity = capacity
        self._callers: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._callers)

    def spend(self, caller: str, now: float) -> bool:
        """Whether one more call is allowed; `now` in seconds, of a clock that does not jump."""
        tokens, at = self._callers.pop(caller, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - at) * self._rate)
        allowed = tokens >= 1
        self._callers[caller] = (tokens - 1 if allowed else tokens, now)
        if len(self._callers) > self._capacity:
            self._callers.popitem(last=False)
        return allowed
