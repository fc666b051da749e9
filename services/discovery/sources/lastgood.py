"""The last good servicesFile in the state folder: written when the file has changed, and once an hour to say that it
still is as it was."""

from __future__ import annotations

from pathlib import Path

from services.runtime import files

from ..core.lastgood import LastGood, decode, encode

FILE = "services.last"
# Seconds after which the same is written again: how wrong an age may be. 16 MiB at most, 5 KiB a second.
REFRESH = 3600.0
# Seconds after which a writing that failed is tried again.
RETRY = 10.0
# Bytes that are read: the largest servicesFile with its header.
MAX_BYTES = (16 << 20) + 4096


class Copy:
    """The file, in both directions. `now`: wall clock, seconds since the Unix epoch."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._kept = LastGood(b"", 0.0)
        self._tried = 0.0

    def load(self) -> LastGood | None:
        """What a former run left, None when there is nothing. OSError or BadSnapshot when it cannot be read."""
        try:
            with self.path.open("rb") as file:
                return decode(file.read(MAX_BYTES))
        except FileNotFoundError:
            return None

    def due(self, data: bytes, now: float) -> bool:
        """Whether `data` should be written now."""
        old = data != self._kept.data or not 0 <= now - self._kept.at < REFRESH
        return old and not 0 <= now - self._tried < RETRY

    def save(self, data: bytes, now: float) -> None:
        """Keep `data`. OSError when that fails; then it is not due for a while."""
        self._tried = now
        kept = LastGood(data, now)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(self.path, encode(kept))
        self._kept = kept
        self._tried = 0.0
