"""Looking a node up: its record from the discovery services of relays and first contacts, or from itself.

All are asked at once; nobody waits for the slow or the dead. Lookups of one name are shared by all who ask.
"""

from __future__ import annotations

import asyncio

from ..core.contacts import Contact, nearest
from ..core.errors import DiscoveryError, TableFull, UnknownNode
from ..core.model import Peer, Source
from ..directory import Directory, contact_of
from ..peers import NodeClient, Refused
from ..probe import Unreachable

# Seconds one contact may take to answer.
DEADLINE = 2.0
# Seconds a fresh lookup waits for further, perhaps newer answers after the first.
GRACE = 0.3
# Lookups at once; a reader that asks for more is refused.
MAX_LOOKUPS = 64


class Lookup:
    """Resolves names."""

    def __init__(self, directory: Directory, client: NodeClient) -> None:
        self._directory = directory
        self._client = client
        self._running: dict[tuple[str, bool], asyncio.Task[Peer]] = {}

    async def resolve(self, name: str, *, fresh: bool) -> Peer:
        """The peer of that name. Raises UnknownNode when nobody knows it.

        With a valid record at hand nobody is asked, unless `fresh`. When nobody answers, an outdated record or
        what the configuration says is better than nothing, and is returned.
        """
        if name == self._directory.settings.node_name:
            return self._directory.self_peer()
        known = self._directory.peers.get(name)
        if not fresh and known is not None and self._directory.registry.fresh(name, self._directory.wall()):
            self._directory.counts["lookups", "local"] += 1
            return known
        task = self._running.get((name, fresh))
        if task is None:
            if len(self._running) >= MAX_LOOKUPS:
                raise TableFull(f"{MAX_LOOKUPS} lookups are running, which is the limit; ask again later")
            task = asyncio.create_task(self._look_up(name, fresh), name=f"look up {name}")
            self._running[name, fresh] = task
            task.add_done_callback(lambda _: self._running.pop((name, fresh), None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End all lookups."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_up(self, name: str, fresh: bool) -> Peer:
        settings = self._directory.settings
        contacts = nearest(settings.cluster, name, self._directory.contacts()) if settings.lookup else []
        known = self._directory.peers.get(name)
        asked = [asyncio.create_task(self._ask(contact, name)) for contact in contacts if contact.node_name != name]
        if known is not None and (itself := contact_of(known)).endpoints:
            asked.append(asyncio.create_task(self._ask_itself(itself)))
        problems: list[str] = []
        found = False
        try:
            pending = set(asked)
            while pending:
                done, pending = await asyncio.wait(
                    pending, timeout=GRACE if found else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for task in done:
                    answer = task.result()
                    found = found or answer is True
                    if isinstance(answer, str):
                        problems.append(answer)
                if found and not fresh:
                    break
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        peer = self._directory.peers.get(name)
        self._directory.counts["lookups", "found" if found else "stale" if peer is not None else "unknown"] += 1
        if peer is None:
            raise UnknownNode(_nobody(name, len(asked), problems))
        return peer

    async def _ask(self, contact: Contact, name: str) -> bool | str:
        """True: a valid record came; False: not known there; text: why there was no answer."""
        try:
            signed = await self._client.get(contact, name, timeout=DEADLINE)
            if signed is None:
                return False
            self._directory.take(signed, Source.LOOKUP, expected=name)
        except (Unreachable, Refused, DiscoveryError) as error:
            return f"{contact.key}: {error}"
        return True

    async def _ask_itself(self, contact: Contact) -> bool | str:
        try:
            signed, _ = await self._client.ping(contact, timeout=DEADLINE)
            self._directory.take(signed, Source.LOOKUP, expected=contact.node_name)
        except (Unreachable, Refused, DiscoveryError) as error:
            return f"{contact.key} itself: {error}"
        return True


def _nobody(name: str, asked: int, problems: list[str]) -> str:
    if not asked:
        return f"nobody knows the node {name}: there is no relay and no first contact to ask; check relayNodes"
    text = f"nobody knows the node {name}: {asked} asked, {asked - len(problems)} answered"
    return f"{text} ({'; '.join(problems[:3])})" if problems else text
