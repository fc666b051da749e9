"""Whose turn it is: bytes are shared out evenly among peers, however many circuits each has."""

from __future__ import annotations

from collections.abc import Callable

from services.runtime.core.bucket import TokenBucket


class Account:
    """What one peer has been carried. `circuits` counts the open circuits that refer to it."""

    __slots__ = ("bucket", "circuits", "service")

    def __init__(self, service: float, bucket: TokenBucket | None) -> None:
        self.service = service
        self.bucket = bucket
        self.circuits = 0


class Accounts:
    """Start-time fair queueing with the byte as the unit of service.

    A flow belongs to two peers and is as late as the more served of them. A peer that was idle starts at the
    service of whoever was served last, so that silence earns no credit.

    With a limit of `rate` bytes a second, each peer also has a bucket of `rate` · 0.25 s, at least 256 KiB: long
    enough to refill in a few wake-ups, short enough that nobody bursts far past the limit.
    """

    def __init__(self, rate: int = 0) -> None:
        self._rate = rate
        self._accounts: dict[str, Account] = {}
        self._level = 0.0

    def limit(self, rate: int, now: float) -> None:
        """Another limit, bytes a second, also for those who are here; 0: none."""
        if rate != self._rate:
            self._rate = rate
            for account in self._accounts.values():
                account.bucket = self._bucket(now)

    @property
    def _burst(self) -> float:
        return max(self._rate * 0.25, 256 * 1024)

    def _bucket(self, now: float) -> TokenBucket | None:
        return TokenBucket(self._rate, self._burst, now) if self._rate else None

    def __len__(self) -> int:
        return len(self._accounts)

    def open(self, peer: str, now: float) -> Account:
        """A circuit of `peer` begins."""
        account = self._accounts.get(peer)
        if account is None:
            account = self._accounts[peer] = Account(self._level, self._bucket(now))
        account.circuits += 1
        return account

    def close(self, peer: str) -> None:
        """A circuit of `peer` ended."""
        account = self._accounts[peer]
        account.circuits -= 1
        if not account.circuits:
            del self._accounts[peer]

    def turn(self, one: Account, other: Account) -> float:
        """Sort key of a flow between two peers that has bytes to move: lowest first."""
        level = self._level
        if one.service < level:
            one.service = level
        if other.service < level:
            other.service = level
        return max(one.service, other.service)

    def charge(self, one: Account, other: Account, amount: int, now: Callable[[], float]) -> None:
        """`amount` bytes were moved between the two."""
        key = max(one.service, other.service)
        if key > self._level:
            self._level = key
        one.service += amount
        other.service += amount
        if one.bucket is not None and other.bucket is not None:
            at = now()
            one.bucket.take(amount, at)
            other.bucket.take(amount, at)

    @property
    def limited(self) -> bool:
        return bool(self._rate)

    def pause(self, one: Account, other: Account, now: float) -> float:
        """Seconds for which a flow between the two must not be read; 0: go on.

        Once stopped, a flow waits for a quarter of the burst: one splice then moves something worth its cost.
        """
        if one.bucket is None or other.bucket is None:
            return 0.0
        if one.bucket.level(now) > 0 and other.bucket.level(now) > 0:
            return 0.0
        need = self._burst / 4
        return max(one.bucket.wait(now, need), other.bucket.wait(now, need))

    def allowance(self, one: Account, other: Account, now: float) -> int:
        """Bytes that may be moved between the two now."""
        if one.bucket is None or other.bucket is None:
            return 1 << 30
        return max(1, int(min(one.bucket.level(now), other.bucket.level(now))))
