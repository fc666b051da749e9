"""What the demo found out: numbers first, then how they are shown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

LOSSES = 2
"""Times that the stream loses its relay: one is killed, and the next one silenced."""


@dataclass
class Event:
    """One thing that was done to the mesh. Times in seconds since the first byte."""

    title: str
    at: float
    path_before: str
    path_after: str = ""
    stall: float = 0.0
    """The longest time without a byte around it, in seconds."""


@dataclass
class Outcome:
    """Everything; `ok` is the verdict."""

    network: str
    """"simulated" or "loopback"."""
    network_reason: str
    """Why there are no simulated NATs; empty when there are."""
    size: int
    received: int = 0
    sha256_expected: str = ""
    sha256_received: str = ""
    client: str = ""
    client_exit: int | None = None
    seconds: float = 0.0
    quiet_stall: float = 0.0
    """The longest time without a byte away from all events, in seconds."""
    events: list[Event] = field(default_factory=list)
    bin_seconds: float = 0.1
    rates: list[float] = field(default_factory=list)
    """Bits a second in consecutive bins since the first byte."""
    paths: list[tuple[float, str]] = field(default_factory=list)
    """Path in use from this time on, in seconds since the first byte."""

    @property
    def lost(self) -> int:
        """Bytes that were sent and did not arrive."""
        return self.size - self.received

    @property
    def intact(self) -> bool:
        """Whether exactly the file arrived."""
        return self.lost == 0 and self.client_exit == 0 and self.sha256_received == self.sha256_expected

    @property
    def ok(self) -> bool:
        """Whether nothing was lost, and the stream really had to change its path each time."""
        moved = [it for it in self.events if it.path_after]
        return self.intact and len(moved) == LOSSES and all(it.path_before != it.path_after for it in moved)

    def to_json(self) -> str:
        """The stable form: sizes in bytes, times in seconds, stalls in milliseconds."""
        fields: dict[str, Any] = asdict(self)
        for name in ("events", "quiet_stall", "rates", "paths"):
            del fields[name]
        fields["seconds"] = round(self.seconds, 3)
        fields |= {"lost": self.lost, "intact": self.intact, "ok": self.ok, "quiet_stall_ms": _ms(self.quiet_stall)}
        fields["events"] = [
            {
                "title": it.title,
                "at": round(it.at, 3),
                "stall_ms": _ms(it.stall),
                "path_before": it.path_before,
                "path_after": it.path_after or it.path_before,
            }
            for it in self.events
        ]
        fields["paths"] = [{"at": round(at, 3), "path": path} for at, path in self.paths]
        fields["rates"] = [round(it) for it in self.rates]
        return json.dumps(fields, indent=2, ensure_ascii=False)

    def table(self) -> Table:
        """Events for a person."""
        table = Table(title=f"{self.size >> 20} MiB from b to a in {self.seconds:.1f} s", title_justify="left")
        for heading in ("at", "event", "stall", "path before", "path after", "bytes lost"):
            table.add_column(heading, justify="right" if heading in ("at", "stall", "bytes lost") else "left")
        for it in self.events:
            after = it.path_after or it.path_before
            table.add_row(f"{it.at:.1f} s", it.title, f"{_ms(it.stall):g} ms", it.path_before, after, str(self.lost))
        table.add_row("", "between events", f"{_ms(self.quiet_stall):g} ms", "", "", "", style="dim")
        return table

    def verdict(self) -> str:
        """One line."""
        if self.ok:
            return f"nothing lost: {self.received} bytes, SHA-256 {self.sha256_received}"
        if self.client_exit != 0:
            return f"the download broke: {self.client} ended with {self.client_exit} after {self.received} of {self.size} bytes"
        if not self.intact:
            return f"the file is not the same: SHA-256 {self.sha256_received}, expected {self.sha256_expected}"
        return "nothing lost, but not every event moved the stream to another path: the demo proves less than it should"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
