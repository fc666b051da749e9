"""How often each of many may ask: a token bucket for each, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict

from .bucket import TokenBucket

# Names remembered; who has not asked for longest is forgotten, and begins with a full bucket.
CAPACITY = 1024


class Allowance:
    """By name, which the asker's certificate proves. `rate`: askings a second; `burst`: at once."""

    def __init__(self, rate: float, burst: float, *, capacity: int = CAPACITY) -> None:
        self._rate = rate
        self._burst = burst
        self._capacity = capacity
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def bucket(self, name: str, now: float) -> TokenBucket:
        """The bucket of one name; `now` in seconds, of a clock that does not jump."""
        bucket = self._buckets.pop(name, None) or TokenBucket(self._rate, self._burst, now)
        self._buckets[name] = bucket
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return bucket

    def spend(self, name: str, now: float) -> bool:
        """Whether one more asking is allowed; if so it is counted."""
        bucket = self.bucket(name, now)
        if bucket.wait(now):
            return False
        bucket.take(1, now)
        return True
