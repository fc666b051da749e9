"""Publishing: the own record is kept fresh at every contact that keeps records for this node.

One small task per contact, which publishes when `due_in` says so and tries again when that fails.
"""

from __future__ import annotations

import asyncio
import random

from ..core.backoff import Backoff
from ..core.contacts import Contact, nearest
from ..core.errors import DiscoveryError
from ..core.model import Record, Signed, Source
from ..core.own import LIFETIME, due_in
from ..directory import Directory
from ..keepers import Keepers
from ..peers import NodeClient, Refused
from ..probe import Unreachable
from .dht import Dht

# Seconds a change of the own record is held back for others that come with it, and a change of the contacts.
DEBOUNCE, RECONCILE = 0.2, 1.0
# Seconds one publication may take.
TIMEOUT = 5.0
# Seconds between two attempts at a contact that fails, at most: when a LAN's uplink returns no address of ours changes,
# and nothing else tells of it. With TIMEOUT this bounds how long a node stays unknown after that.
MAX_PAUSE = 6.0
# Seconds between two attempts at one that refuses, at least and at most: a table that is full stays so for minutes.
REFUSED = (60.0, 600.0)
# Seconds until the next publication where another run of this node's name had published, doubled each time: is it
# still alive, it will be there again.
SUSPICIOUS = 15.0


class Publisher:
    """Keeps one keeper per contact."""

    def __init__(self, directory: Directory, client: NodeClient, dht: Dht, rng: random.Random) -> None:
        self._directory = directory
        self._client = client
        self._dht = dht
        self._rng = rng
        self._state: dict[str, str] = {}
        self._keepers = Keepers(self._keep, "publish at")
        # Who answered at first contacts, which are known by their address only.
        self._names: dict[str, str] = {}

    async def run(self) -> None:
        """Follows the registry and the DHT: contacts come and go."""
        try:
            seen = -1
            while True:
                seen = self._directory.peers_bell.count
                await self._reconcile(self._wanted())
                await self._directory.peers_bell.wait(seen)
                await asyncio.sleep(RECONCILE)
        finally:
            await self._reconcile([])

    def _wanted(self) -> list[Contact]:
        """Relays and first contacts, then the servers of the DHT nearest to this node, nobody twice."""
        settings = self._directory.settings
        found = nearest(settings.cluster, settings.node_name, self._directory.contacts())
        named = {contact.node_name for contact in found if contact.node_name}
        # A first contact that turned out to be one of the others.
        contacts = [it for it in found if it.node_name or self._names.get(it.key) not in named]
        self._names = {it.key: self._names[it.key] for it in found if it.key in self._names}
        known = named.union(self._names.values())
        return contacts + [holder for holder in self._dht.holders if holder.node_name not in known]

    async def _reconcile(self, wanted: list[Contact]) -> None:
        await self._keepers.reconcile(wanted)
        self._state = {key: state for key, state in self._state.items() if key in self._keepers.contacts}
        self._show()

    async def _keep(self, key: str) -> None:
        silent, refused = Backoff(1.0, MAX_PAUSE, self._rng), Backoff(*REFUSED, self._rng)
        published: Record | None = None
        suspicion = LIFETIME
        while True:
            seen = self._directory.own_bell.count
            signed, record = self._directory.signed(max_age=LIFETIME / 4), self._directory.record()
            backoff = silent
            try:
                taken, alone = await self._put(self._keepers.contacts[key], signed, record, published)
            except Exception as error:
                # Whatever one contact brings about must not end publishing there.
                self._directory.counts["publishes", "failed"] += 1
                self._note(key, str(error), known=isinstance(error, Unreachable | Refused | DiscoveryError))
                if isinstance(error, Refused):
                    backoff = refused
                else:
                    self._dht.lost(self._keepers.contacts[key])
                taken = alone = False
            if not taken:
                await self._directory.back_off(backoff)
                continue
            self._directory.counts["publishes", "ok"] += 1
            self._note(key, "")
            silent.reset()
            refused.reset()
            published = record
            suspicion = 2 * suspicion if alone else SUSPICIOUS
            await self._until_due(published, seen, suspicion)

    async def _put(
        self, contact: Contact, signed: Signed, record: Record, published: Record | None
    ) -> tuple[bool, bool]:
        """Publish once. False when the contact holds a newer record under our name, which ours has to outrun; and whether
        nobody but this run has published there."""
        directory = self._directory
        answer = await self._client.put(contact, signed, timeout=TIMEOUT)
        keeper = directory.try_take(answer.own, Source.LOOKUP, contact.key, expected=contact.node_name)
        if keeper is not None:
            self._dht.answered(keeper, answer.own, answer.where)
            if not contact.node_name and self._names.get(contact.key) != keeper.node_name:
                self._names[contact.key] = keeper.node_name
                directory.peers_bell.ring()
        if answer.conflicting is None:
            return True, True
        other = directory.try_take(
            answer.conflicting, Source.LOOKUP, contact.key, expected=directory.settings.node_name
        )
        if other is None or other.instance_id == directory.instance_id:
            return True, True
        # At the first publication of a run this is most likely the former run's record. After that, somebody
        # else must have put it there.
        if published is not None and other.revision > published.revision:
            directory.meet_double(other, f"at {contact.key}")
        if other.revision < record.revision:
            return True, False
        directory.own.outrun(other.revision)
        return False, False

    async def _until_due(self, published: Record, seen: int, most: float) -> None:
        """Returns when the contact should be told something new, after `most` seconds at the latest."""
        directory = self._directory
        start = directory.wall()
        # Nodes that started together must not come back together for ever.
        pace = self._rng.uniform(1.0, 1.1)
        while True:
            age = abs(directory.wall() - start) * pace
            wait = min(due_in(published, directory.own.current or published, age), most - age)
            if wait <= 0:
                break
            seen = await directory.own_bell.wait(seen, wait / pace)
        await asyncio.sleep(DEBOUNCE)

    def _note(self, key: str, problem: str, *, known: bool = True) -> None:
        before = self._state.get(key)
        self._state[key] = problem
        if problem != before:
            if problem:
                extra = {"peer": key, "error": problem}
                self._directory.log.warning("not published", extra=extra, exc_info=not known)
            else:
                self._directory.log.info("published", extra={"peer": key})
        self._show()

    def _show(self) -> None:
        board = self._directory.board
        good = [key for key in self._keepers.contacts if self._state.get(key) == ""]
        bad = {key: state for key, state in self._state.items() if state}
        text = f"published at {len(good)} of {len(self._keepers.contacts)}"
        if bad:
            text += "; " + "; ".join(f"{key}: {state}" for key, state in sorted(bad.items()))
        board.say("lookup", text if self._keepers.contacts else "no contacts: no relayNodes and no bootstrap")
