"""What was proven outlives a restart, for as long as a proof does: the relay that comes back is one at once."""

from __future__ import annotations

import json
import logging
import time
from ipaddress import ip_address
from pathlib import Path

from services.runtime.core.envelope import unwrap, wrap
from services.runtime.files import write_atomically

FORMAT = "causeway-reachability"
VERSION = 1
MAX_AGE = 3600.0
"""Seconds for which a proof is believed without a new one: as long as it is while running."""
SAVE_EVERY = 300.0
"""Seconds between two savings of the same."""


class Memory:
    """A small file in the state directory. Failing to write it costs a slower start, nothing else; `problem` says so in
    one line, and `retry` tries again."""

    def __init__(self, path: Path, log: logging.Logger) -> None:
        self.problem = ""
        self._path = path
        self._log = log
        self._saved: frozenset[str] = frozenset()
        self._saved_at = 0.0
        self._unsaved: dict[str, int] | None = None

    def load(self) -> dict[str, int]:
        """Addresses that were up lately, with bytes per second."""
        try:
            values = json.loads(unwrap(FORMAT, VERSION, self._path.read_bytes()[:65536]))
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
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            body = json.dumps({"savedAt": now, "proven": proven}).encode()
            write_atomically(self._path, wrap(FORMAT, VERSION, body))
        except OSError as error:
            self._unsaved = proven
            problem = f"{self._path} cannot be written: {error.strerror}; a restart has to prove anew that this node is reachable"
            if problem != self.problem:
                self.problem = problem
                self._log.warning(problem)
            return
        self._saved, self._saved_at = ips, now
        self._unsaved, self.problem = None, ""

    def retry(self) -> None:
        """Write what could not be written."""
        if self._unsaved is not None:
            self.save(self._unsaved)
