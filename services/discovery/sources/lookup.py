"""Looking a node up: its record from the discovery services of relays and first contacts, from itself, or from the DHT.

All are asked at once, the DHT a moment later; nobody waits for the slow or the dead. Lookups of one name are shared by all who ask.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ..core.contacts import Contact, nearest
from ..core.errors import DiscoveryError, NobodyAnswered, TableFull, UnknownNode
from ..core.model import Peer, Source
from ..directory import Directory, contact_of
from ..peers import NodeClient, Refused
from ..probe import Unreachable
from .dht import Dht

# Seconds one contact may take to answer.
DEADLINE = 2.0
# Seconds a fresh lookup waits for further, perhaps newer answers after the first.
GRACE = 0.3
# Seconds before the DHT is asked beside contacts that do not answer.
PATIENCE = 0.5
# How the DHT's "nobody knows it" begins.
SEARCHED = "servers of the DHT asked: "
# Lookups at once; a reader that asks for more is refused.
MAX_LOOKUPS = 64


@dataclass(frozen=True, slots=True)
class Searched:
    """The DHT was asked, and nobody there knows the name."""

    asked: int
    answered: int

    def __str__(self) -> str:
        return f"{SEARCHED}{self.asked}"


# Whether it knows the name, or why there was no answer.
Answer = bool | str | Searched


class Lookup:
    """Resolves names."""

    def __init__(self, directory: Directory, client: NodeClient, dht: Dht) -> None:
        self._directory = directory
        self._client = client
        self._dht = dht
        self._running: dict[tuple[str, bool], asyncio.Task[Peer]] = {}

    async def resolve(self, name: str, *, fresh: bool) -> Peer:
        """The peer of that name. Raises UnknownNode when nobody knows it, NobodyAnswered when those who may did not say.

        With a valid record at hand nobody is asked, unless `fresh`. When nobody answers, an outdated record or
        what the configuration says is better than nothing, and is returned.
        """
        if name == self._directory.settings.node_name:
            return self._directory.self_peer()
        self._recall(name)
        known = self._directory.peers.get(name)
        if not fresh and known is not None and self._directory.registry.fresh(name, self._directory.wall()):
            self._directory.counts["lookups", "local"] += 1
            self._directory.registry.want(name)
            return known
        task = self._running.get((name, fresh))
        if task is None:
            if len(self._running) >= MAX_LOOKUPS:
                raise TableFull(f"{MAX_LOOKUPS} lookups are running, which is the limit; ask again later")
            task = asyncio.create_task(self._look_up(name, fresh), name=f"look up {name}")
            self._running[name, fresh] = task
            task.add_done_callback(lambda _: self._running.pop((name, fresh), None))
        return await asyncio.shield(task)

    def _recall(self, name: str) -> None:
        """A record that this node keeps for others, whom nobody here asked for until now."""
        held = self._dht.held(name)
        entry = self._directory.registry.entry(name)
        if held is not None and (entry is None or entry.signed is not held):
            self._directory.try_take(held, Source.LOOKUP, name, expected=name)

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
        asked: list[asyncio.Task[Answer]] = [
            asyncio.create_task(self._ask(contact, name)) for contact in contacts if contact.node_name != name
        ]
        if known is not None and (itself := contact_of(known)).endpoints:
            asked.append(asyncio.create_task(self._ask_itself(itself)))
        contacted = len(asked)
        if settings.lookup:
            asked.append(asyncio.create_task(self._search(name, tuple(asked))))
        problems: list[str] = []
        found = False
        # Somebody answered that it does not know the name.
        denied = False
        alone = not contacted
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
                    denied = denied or answer is False
                    if isinstance(answer, Searched):
                        denied = denied or answer.answered > 0
                        alone = alone and not answer.asked
                    if not isinstance(answer, bool):
                        problems.append(str(answer))
                if found and not fresh:
                    break
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        peer = self._directory.peers.get(name)
        self._directory.counts["lookups", "found" if found else "stale" if peer is not None else "unknown"] += 1
        if peer is None:
            raise (UnknownNode if denied or alone else NobodyAnswered)(_nobody(name, contacted, problems, alone))
        return peer

    async def _ask(self, contact: Contact, name: str) -> Answer:
        """True: a valid record came; False: not known there; text: why there was no answer."""
        try:
            signed = await self._client.get(contact, name, timeout=DEADLINE)
            if signed is None:
                return False
            self._directory.take(signed, Source.LOOKUP, expected=name)
        except (Unreachable, Refused, DiscoveryError) as error:
            return f"{contact.key}: {error}"
        return True

    async def _search(self, name: str, before: tuple[asyncio.Task[Answer], ...]) -> Answer:
        """In the DHT, when nobody who was asked `before` knows the name, or they take long."""
        if before:
            done, _ = await asyncio.wait(before, timeout=PATIENCE)
            if any(task.result() is True for task in done):
                return True
        try:
            found, asked, answered = await self._dht.find(name)
        except DiscoveryError as error:
            return f"the DHT: {error}"
        return found or Searched(asked, answered)

    async def _ask_itself(self, contact: Contact) -> Answer:
        try:
            signed, _ = await self._client.ping(contact, timeout=DEADLINE)
            self._directory.take(signed, Source.LOOKUP, expected=contact.node_name)
        except (Unreachable, Refused, DiscoveryError) as error:
            return f"{contact.key} itself: {error}"
        return True


def _nobody(name: str, asked: int, problems: list[str], alone: bool) -> str:
    searched = [text for text in problems if text.startswith(SEARCHED)]
    problems = [text for text in problems if text not in searched]
    if alone:
        return f"nobody knows the node {name}: there is no relay and no first contact to ask; check relayNodes"
    text = f"nobody knows the node {name}: {asked} asked, {asked - len(problems)} answered"
    text += f"; {searched[0]}" if searched else ""
    return f"{text} ({'; '.join(problems[:3])})" if problems else text
