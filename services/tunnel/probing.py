"""Measures relays to which no control connection is open: how far they are, and how full. When: core/choice.Rounds."""

import asyncio
import logging
import random
import time

from services.runtime.identity import Identity
from services.tunnel import metrics
from services.tunnel.config import Settings
from services.tunnel.core.choice import Rounds
from services.tunnel.relay_contact import FAILURES, RelayContact
from services.tunnel.relays import RelayPool

log = logging.getLogger("causeway.tunnel")

TIMEOUT = 3.0
"""Seconds for a probe to connect."""
AT_ONCE = 4
"""Probes under way: each is a handshake, at both ends."""


class Probing:
    """`tick` every second."""

    def __init__(self, settings: Settings, identity: Identity, relays: RelayPool) -> None:
        self._settings = settings
        self._identity = identity
        self._relays = relays
        self._rounds = Rounds(random.Random())
        self._room = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def tick(self, now: float) -> None:
        for name in self._rounds.due(self._relays.unmeasured(now), now):
            if name not in self._tasks:
                self._tasks[name] = asyncio.create_task(self._probe(name), name=f"probe {name}")

    async def close(self) -> None:
        """Breaks off what is under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _probe(self, name: str) -> None:
        try:
            async with self._room:
                await self._measure(name)
        finally:
            del self._tasks[name]

    async def _measure(self, name: str) -> None:
        info = self._relays.relay_info(name)
        for address in info.relay_addresses if info is not None else ():
            try:
                contact = await RelayContact.open(self._identity, self._settings, name, address, 0, TIMEOUT)
                try:
                    rtt = await contact.round_trip()
                finally:
                    await contact.close()
            except FAILURES as error:
                log.debug("relay not measured", extra={"relay": name, "error": str(error) or "no answer in time"})
                metrics.PROBES.labels("failed").inc()
            else:
                metrics.PROBES.labels("answered").inc()
                self._relays.probed(name, rtt, contact.load, time.monotonic())
                return
