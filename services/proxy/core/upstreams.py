"""Which name server is asked first."""

from collections.abc import Sequence
from typing import NamedTuple

# Seconds for which a server that gave no answer is asked after all others: each attempt costs a client its timeout.
HOLD = 30.0


class Upstream(NamedTuple):
    """A name server."""

    ip: str
    port: int = 53

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


class Upstreams:
    """In the order in which they were named, but those that failed lately last. `now` in seconds, monotonic."""

    def __init__(self) -> None:
        self._held: dict[Upstream, float] = {}  # until when

    def order(self, named: Sequence[Upstream], now: float) -> list[Upstream]:
        """Each once; those that are no longer named are forgotten."""
        self._held = {one: until for one, until in self._held.items() if until > now and one in named}
        return sorted(dict.fromkeys(named), key=lambda one: self._held.get(one, 0.0))

    def failed(self, one: Upstream, now: float) -> None:
        self._held[one] = now + HOLD

    def worked(self, one: Upstream) -> None:
        self._held.pop(one, None)
