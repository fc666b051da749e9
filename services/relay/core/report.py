"""What discovery is told of this relay, and when."""

from __future__ import annotations

from dataclasses import dataclass

LOAD_STEP = 50
"""Permille of load that are worth a new record: a new record goes to every node that knows us."""
CIRCUITS_STEP = 0.25
"""Share by which the number of circuits must change."""


@dataclass(frozen=True, slots=True)
class Report:
    """`serving`: False takes the relay role out of the node's record. The claim of a relay that earned its role:
    `proven`, the addresses at which others dialled it back, `throughput` towards them in bytes per second, `up_since`
    (seconds since the Unix epoch) the beginning of that."""

    serving: bool
    configured: bool = False
    load_permille: int = 0
    circuits: int = 0
    draining: bool = False
    proven: tuple[str, ...] = ()
    throughput: int = 0
    up_since: int = 0

    def urgent(self, last: Report | None) -> bool:
        """Others must know at once."""
        return last is None or (self.serving, self.configured, self.draining, self.proven) != (
            last.serving,
            last.configured,
            last.draining,
            last.proven,
        )

    def worth(self, last: Report | None) -> bool:
        """Others should know soon."""
        if last is None or self.urgent(last) or abs(self.load_permille - last.load_permille) >= LOAD_STEP:
            return True
        return abs(self.circuits - last.circuits) > CIRCUITS_STEP * last.circuits
