"""Requests at a rate, as many clients make them."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable


class Load:
    """Requests at `rate` a second, each on a connection of its own; fewer where the machine is too busy for `most` at a
    time. `ask` makes one, and says which backend answered; it raises OSError or ValueError when none did."""

    def __init__(self, ask: Callable[[], Awaitable[int]], rate: float, most: int = 100) -> None:
        self._ask = ask
        self._rate = rate
        self._most = most
        self.answers: list[tuple[float, int]] = []  # when it was begun, which backend answered
        self.failures: list[tuple[float, str]] = []  # when it was begun, and what happened
        self.longest = 0.0  # s that one took
        self.sent = 0
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        next_at = time.monotonic()
        while True:
            now = time.monotonic()
            while next_at <= now and len(self._running) < self._most:
                next_at += 1 / self._rate
                self.sent += 1
                task = asyncio.create_task(self._one())
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            next_at = max(next_at, now - 0.1)  # what could not be sent then is not made up for
            await asyncio.sleep(0.005)

    async def drain(self) -> None:
        """Waits for those under way."""
        await asyncio.gather(*self._running)

    def since(self, moment: float) -> "Counter[int]":
        """Answers to what was begun after that moment, by backend."""
        return Counter(backend for when, backend in self.answers if when > moment)

    async def _one(self) -> None:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(60):
                backend = await self._ask()
            self.answers.append((begun, backend))
        except (OSError, ValueError) as error:
            self.failures.append((begun, repr(error)))
        self.longest = max(self.longest, time.monotonic() - begun)
