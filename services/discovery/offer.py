"""Offering to dial: this node is a vantage for those whom it calls, and who perhaps cannot call it.

One small task per contact. What it dials is the address at which the contact has just shown its certificate, and
nothing else, so that no contact can turn it against others.
"""

from __future__ import annotations

import asyncio
import random
from time import monotonic

from . import dialback
from .core.backoff import Backoff
from .core.contacts import nearest
from .core.errors import DiscoveryError, LimitReached
from .core.model import Source
from .core.round import Wish
from .core.vantage import DialOutcome, Guard, check
from .directory import Directory
from .keepers import Keepers
from .peers import NodeClient, Refused
from .probe import Unreachable
from .wire import Report

TIMEOUT = 5.0
"""Seconds for one call."""
AGAIN = (1.0, 3600.0)
"""Seconds between two offers, at least and at most, whatever the contact says."""
BUSY = 3.0
"""Seconds until a dial that is over the limit is tried again."""
RECONCILE = 1.0
"""Seconds a change of the contacts is held back for others that come with it."""


class Offerer:
    """Keeps one task per contact."""

    def __init__(self, directory: Directory, client: NodeClient, guard: Guard, rng: random.Random) -> None:
        self._directory = directory
        self._client = client
        self._guard = guard
        self._rng = rng
        self._keepers = Keepers(self._keep, "offer to")

    async def run(self) -> None:
        """Follows the registry: contacts come and go."""
        settings = self._directory.settings
        try:
            while True:
                seen = self._directory.peers_bell.count
                wanted = nearest(settings.cluster, settings.node_name, self._directory.contacts())
                await self._keepers.reconcile(wanted)
                await self._directory.peers_bell.wait(seen)
                await asyncio.sleep(RECONCILE)
        finally:
            await self._keepers.reconcile(())

    async def _keep(self, key: str) -> None:
        backoff = Backoff(2.0, 60.0, self._rng)
        reports: list[Report] = []
        directory = self._directory
        while True:
            contact = self._keepers.contacts[key]
            try:
                answer, endpoint = await self._client.offer(contact, reports, timeout=TIMEOUT)
                directory.try_take(answer.own, Source.LOOKUP, key, expected=contact.node_name)
                reports = []
                if answer.wish is not None:
                    reports = [await self._fulfil(answer.wish, key, endpoint.host)]
            except (Unreachable, Refused, DiscoveryError) as error:
                directory.log.debug("offer not taken", extra={"peer": key, "error": str(error)})
                reports, wait = [], backoff.next()
            except Exception as error:
                # Whatever one contact brings about must not end the offers to it.
                directory.log.error("offer failed", extra={"peer": key, "error": repr(error)}, exc_info=error)
                reports, wait = [], backoff.next()
            else:
                backoff.reset()
                # A dial is reported soon, and not at once: a contact cannot make us call it without end.
                wait = AGAIN[0] / 2 if reports else min(max(answer.again, AGAIN[0]), AGAIN[1])
            seen = directory.wake_bell.count
            if await directory.wake_bell.wait(seen, wait * self._rng.uniform(1.0, 1.1)) != seen:
                backoff.reset()

    async def _fulfil(self, wish: Wish, key: str, ip: str) -> Report:
        check(wish.port, wish.token)
        while True:
            try:
                self._guard.enter(key, monotonic())
                break
            except LimitReached:
                await asyncio.sleep(BUSY)
        try:
            outcome = await dialback.dial(ip, wish.port, wish.token, source=self._directory.settings.listen_address)
        finally:
            self._guard.done(key)
        outcome = outcome or DialOutcome.UNREACHABLE  # there was a way a moment ago
        self._directory.counts["dials", outcome.name.lower()] += 1
        return Report(wish.token, ip, outcome)
