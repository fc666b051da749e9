"""What is known, kept on disk, so that a node which restarts without a network still finds its neighbours.

Written every ten seconds while something changes (every minute when it is large), in a thread (a flush may take seconds on a slow card), and once
more at the end. A file that cannot be read is set aside with a warning; a disk that
cannot be written costs nothing but the next start.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from services.runtime import files
from services.runtime.core.envelope import BadSnapshot

from ..core.errors import DiscoveryError
from ..core.model import Signed, Source
from ..core.registry import Entry
from ..core.snapshot import Snapshot, decode, encode
from ..directory import Directory

FILE = "registry.json"
# Peers kept: relays and those of the LAN first, then the newest.
MAX_KEPT = 512
# Seconds between two writings, at least and at most, and bytes a second to be written in between: flash wears out.
PERIOD, MAX_PERIOD = 10.0, 60.0
MAX_RATE = 10_000
# Bytes that are read.
MAX_BYTES = 32 << 20
# Records verified before other work gets its turn; one takes about 0.3 ms.
BATCH = 16


class Cache:
    """The file, in both directions."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._path: Path = directory.settings.state_dir / FILE
        self._restored: tuple[Signed, ...] = ()
        self._saved_at = 0.0
        self._kept = 0
        self._size = 0
        self._written: Snapshot | None = None
        self._seen: tuple[object, ...] = ()

    def load(self) -> Snapshot:
        """What the last run left; an empty snapshot when there is nothing usable."""
        try:
            with self._path.open("rb") as file:
                snapshot = decode(file.read(MAX_BYTES))
        except FileNotFoundError:
            return Snapshot()
        except (OSError, BadSnapshot) as error:
            aside = self._path.with_suffix(".bad")
            text = f"{self._path} is not used: {error}; starting without remembered peers"
            try:
                self._path.replace(aside)
                text += f", the file is kept as {aside.name}"
            except OSError:
                pass
            self._directory.board.warn("cache", text)
            self._directory.log.warning(text)
            return Snapshot()
        self._restored, self._saved_at = snapshot.peers, snapshot.saved_at
        return snapshot

    async def run(self) -> None:
        """Brings the remaining remembered peers back, then writes changes for ever."""
        while self._restored:
            self.restore(BATCH)
            await asyncio.sleep(0)
        while True:
            await asyncio.sleep(min(max(PERIOD, self._size / MAX_RATE), MAX_PERIOD))
            await self._save()

    async def close(self) -> None:
        """Write what has changed since."""
        await self._save()

    def restore(self, count: int) -> None:
        """Bring the next `count` remembered peers back, the most valuable first."""
        now, self._restored = self._restored[:count], self._restored[count:]
        for signed in now:
            try:
                self._directory.take(signed, Source.CACHE)
                self._kept += 1
            except DiscoveryError as error:
                self._directory.log.debug("cached record dropped", extra={"reason": error.reason})
        text = f"{self._kept} peers remembered"
        if self._kept:
            hours = max(0.0, self._directory.wall() - self._saved_at) / 3600
            text += f", saved {hours:.1f} h before the start"
        self._directory.board.say("cache", text)

    async def _save(self) -> None:
        directory = self._directory
        seen = (directory.peers_bell.count, directory.own_bell.count, directory.servers)
        if seen == self._seen:
            return
        snapshot = self._snapshot()
        if snapshot != self._written:
            try:
                await asyncio.to_thread(self._write, replace(snapshot, saved_at=directory.wall()))
            except OSError as error:
                text = (
                    f"{self._path} cannot be written: {error.strerror}; discovery goes on, but will not remember peers"
                )
                if directory.board.warn("cache", text):
                    directory.log.warning(text)
                return
            directory.board.clear("cache")
        self._written, self._seen = snapshot, seen

    def _snapshot(self) -> Snapshot:
        own = self._directory.own
        entries = [entry for entry in self._directory.registry.entries() if entry.signed is not None]
        entries.sort(key=_worth, reverse=True)
        kept = tuple(entry.signed for entry in entries[:MAX_KEPT] if entry.signed is not None)
        return Snapshot(0.0, own.last_revision, own.tunnel, own.relay, kept, self._directory.servers)

    def _write(self, snapshot: Snapshot) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        data = encode(snapshot)
        files.write_atomically(self._path, data)
        self._size = len(data)


def _worth(entry: Entry) -> tuple[bool, bool, float]:
    """Relays are worth the most, then neighbours, then what is new."""
    record = entry.record
    relay = entry.named is not None or (record is not None and record.relay is not None)
    return relay, Source.MDNS in entry.claims, record.issued_at if record is not None else 0.0
