"""Handshakes with one peer, one after the other, as long as each of them is quick.

What accepts a connection need not be the peer, nor say a word: captive portals and SYN proxies accept whatever is dialled,
and so may a stranger at a private address. Nobody waits for such a one for long, also when there are several.
"""

import asyncio
import contextlib
import time
from types import TracebackType

HEADSTART, LEAST = 1.0, 0.25
"""Seconds that one has for itself: two or three round trips of the slowest path that is of use. Each that begins while
others go on leaves half as much to the next, but not less than the second number: where handshakes are slow because the
host is busy, all of them at once would make it busier."""


class Turns:
    """`async with`: begins when nobody else is at it, or those who are have had their time."""

    def __init__(self) -> None:
        self._going = 0
        self._next_at = 0.0
        self._ended = asyncio.Event()

    async def __aenter__(self) -> None:
        while self._going and (left := self._next_at - time.monotonic()) > 0:
            self._ended.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._ended.wait()
        self._next_at = time.monotonic() + max(HEADSTART / 2**self._going, LEAST)
        self._going += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._going -= 1
        self._ended.set()
