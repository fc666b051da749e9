"""What discovery is told of this relay, and when."""

from __future__ import annotations

from dataclasses import dataclass

LOAD_STEP = 50
"""Permille of load that are worth a new record: a new record goes to every node that knows us."""
CIRCUITS_STEP = 0.25
"""Share by which the number of circuits must change."""


@dataclass(frozen=True, slots=True)
class Report:
    """`serving`: False takes the relay role out of the node's record."""

    serving: bool
    configured: bool = False
    load_permille: int = 0
    circuits: int = 0
    draining: bool = False

    def urgent(self, last: Report | None) -> bool:
        """Others must know at once."""
        return last is None or (self.serving, self.configured, self.draining) != (
            last.serving,
            last.configured,
            last.draining,
        )

    def worth(self, last: Report | None) -> bool:
        """Others should know soon."""
        if last is None or self.urgent(last) or abs(self.load_permille - last.load_permille) >= LOAD_STEP:
            return True
        return abs(self.circuits - last.circuits) > CIRCUITS_STEP * last.circuits
