"""Has other nodes dial the relay's port, for ever, and keeps what they found."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from random import Random
from time import monotonic

from .core.confidence import Reachability, Sample
from .core.pace import FIRST, Pace
from .memory import Memory
from .peers import Addresses, Dialled, Discovery, Outcome
from .proof import Proofs

TOKENS = 32
"""Dials of one round: a few vantages, a few addresses each."""
USUAL = 60.0
"""Seconds after which nodes that offer to dial come again, when all is decided."""
ABSENT = 2.0
"""Seconds until discovery, which is not there, is asked again."""
SLOW = 5.0
"""Seconds in which other vantages of a round may find, too, that they get no answer."""
_WORDS = {
    Outcome.CONNECTED: "somebody else answered there",
    Outcome.RESET: "connection refused",
    Outcome.SILENCE: "no answer",
    Outcome.UNREACHABLE: "no route",
    Outcome.LOST: "it has not come back",
}


class Prober:
    """`found` is what is known; `changed` is called when it changed. `interval`: seconds between two rounds.

    `faithful` tells whether vantages that do not come back count: not where others know this node by name.
    """

    def __init__(
        self,
        discovery: Discovery,
        memory: Memory,
        port: int,
        interval: float,
        *,
        changed: Callable[[], None],
        faithful: Callable[[], bool],
        log: logging.Logger,
    ) -> None:
        self.found = Reachability()
        self.proofs = Proofs()
        self._discovery = discovery
        self._memory = memory
        self._port = port
        self._interval = interval
        self._changed = changed
        self._faithful = faithful
        self._log = log
        self._pace = Pace(interval, Random())
        self._ips: frozenset[str] | None = None
        self._wanted = asyncio.Event()
        self._current: asyncio.Task[None] | None = None
        for ip, throughput in memory.load().items():
            self.found.remember(ip, throughput, monotonic())

    def want(self, wanted: bool) -> None:
        """Whether to probe at all. What was found is worth nothing when nobody has looked for a while."""
        if wanted:
            self._wanted.set()
        elif self._wanted.is_set():
            self._wanted.clear()
            self.found = Reachability()
            if self._current is not None:
                self._current.cancel()

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                await self._wanted.wait()
                self._current = asyncio.create_task(self._round(), name="probe")
                await asyncio.wait((self._current,))
                if self._current.cancelled():
                    continue
                error = self._current.exception()
                if isinstance(error, ConnectionError):
                    self._log.debug("nobody asked to dial back", extra={"error": str(error)})
                    self._pace.hurry()
                    await asyncio.sleep(ABSENT)
                elif error is not None:
                    raise error
        finally:
            if self._current is not None:
                self._current.cancel()
                await asyncio.gather(self._current, return_exceptions=True)
            await self.proofs.close()

    async def _round(self) -> None:
        """Ends when it is time for the next one."""
        settled = self.found.settled
        tokens = self.proofs.issue(TOKENS)
        soon = self._pace.pause(settled)
        pace = min(USUAL, soon)
        loop = asyncio.get_running_loop()
        try:
            # Undecided, it lasts until somebody comes: there may be nobody yet.
            async with (
                asyncio.timeout(soon if settled else self._interval) as limit,
                aclosing(self._discovery.probe(self._port, tokens, pace)) as events,
            ):
                async for event in events:
                    if isinstance(event, Addresses):
                        if self._moved(frozenset(event.ips)):
                            return
                    elif await self._take(event):
                        if not self.found.settled:
                            pause = FIRST if settled else soon
                            if event.outcome is not Outcome.CONNECTED:
                                pause = max(pause, SLOW)
                        elif not settled:
                            pause = SLOW  # decided: the next round tells those who come regularly to come seldom
                        else:
                            continue
                        limit.reschedule(min(limit.when() or 0.0, loop.time() + pause))
        except TimeoutError:
            pass

    def _moved(self, ips: frozenset[str]) -> bool:
        """These are the host's addresses now. True: others than in the last round."""
        before, self._ips = self._ips, ips
        if before is None or before == ips:
            return False
        self._log.info("addresses changed, others are asked to dial again", extra={"address": ",".join(sorted(ips))})
        self.found.forget(before - ips)
        self._pace.hurry()
        self._changed()
        return True

    async def _take(self, dialled: Dialled) -> bool:
        """What a vantage found. False: it says nothing."""
        before = self.found.up().keys()
        if dialled.outcome is Outcome.LOST:
            if not self._faithful():
                return False
            self.found.miss(dialled.vantage, _WORDS[Outcome.LOST], monotonic())
        else:
            throughput = await self.proofs.throughput(dialled.token)
            success = throughput is not None
            detail = "connected" if success else _WORDS[dialled.outcome]
            sample = Sample(dialled.vantage, success, detail, throughput or 0)
            self.found.add(dialled.ip, sample, monotonic())
            self._log.debug("dialled back", extra={"peer": dialled.vantage, "address": dialled.ip, "reason": detail})
        if self.found.up().keys() != before:
            self._pace.hurry()
        self._memory.save({ip: window.throughput for ip, window in self.found.up().items()})
        self._changed()
        return True
