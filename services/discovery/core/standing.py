"""What this node is to the DHT, and the DHT to it, for a person."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """What status shows; `refreshed`: seconds ago, None: never."""

    server: bool
    servers: int
    estimated: int
    records: int
    record_bytes: int
    relays: int
    holders: tuple[str, ...]
    refreshed: float | None

    def __str__(self) -> str:
        word = "server" if self.server else "client: nobody has called this node"
        parts = [word, f"{self.servers} servers known of about {self.estimated}", f"{self.records} records kept"]
        if self.holders:
            parts.append(f"own record at {', '.join(self.holders)}")
        parts.append("not refreshed yet" if self.refreshed is None else f"refreshed {self.refreshed:.0f} s ago")
        return "; ".join(parts)
