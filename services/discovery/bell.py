"""Wakes any number of waiting tasks; a ring is never lost, however late the waiter looks."""

from __future__ import annotations

import asyncio


class Bell:
    """Counts its rings. A waiter remembers the count it has acted on and waits for a greater one."""

    def __init__(self) -> None:
        self.count = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Something changed."""
        self.count += 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait(self, seen: int, timeout: float | None = None) -> int:
        """Returns the count as soon as it differs from `seen`, or after `timeout` seconds."""
        if self.count == seen:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait((waiter,), timeout=timeout)
            finally:
                self._waiters.discard(waiter)
        return self.count
