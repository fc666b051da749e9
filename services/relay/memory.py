"""What was proven outlives a restart, for as long as a proof does: the relay that comes back is one at once."""

from __future__ import annotations

import json
import logging
import time
from ipaddress import ip_address
from pathlib import Path

from services.runtime.files import write_atomically

MAX_AGE = 3600.0
"""Seconds for which a proof is believed without a new one: as long as it is while running."""
SAVE_EVERY = 300.0
"""Seconds between two savings of the same."""


class Memory:
    """A small file in the state directory. Failing to write it costs a slower start, nothing else."""

    def __init__(self, path: Path, log: logging.Logger) -> None:
        self._path = path
        self._log = log
        self._saved: frozenset[str] = frozenset()
        self._saved_at = 0.0

    def load(self) -> dict[str, int]:
        """Addresses that were up lately, with bytes per second."""
        try:
            values = json.loads(self._path.read_bytes()[:65536])
            if not 0 <= time.time() - float(values["savedAt"]) <= MAX_AGE:
                return {}
            return {str(ip_address(ip)): int(throughput) for ip, throughput in values["proven"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            self._log.warning("former proofs not read", extra={"file": str(self._path), "error": str(error)})
            return {}

    def save(self, proven: dict[str, int]) -> None:
        """These addresses are up now."""
        now = time.time()
        ips = frozenset(proven)
        if ips == self._saved and (not ips or abs(now - self._saved_at) < SAVE_EVERY):
            return
        self._saved, self._saved_at = ips, now
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps({"savedAt": now, "proven": proven}).encode())
        except OSError as error:
            self._log.warning("proofs not kept", extra={"file": str(self._path), "error": str(error)})
