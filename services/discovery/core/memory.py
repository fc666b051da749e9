"""Servers of the DHT that outlive a run: who is there now, then who was."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .routing import Node

# Servers remembered, and seconds for which they are worth a call: as long as a site may be cut off.
MAX_REMEMBERED, OLD = 128, 7 * 86_400.0
# Seconds by which a time may be behind, so that the file is not written for every look.
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Remembered:
    """A server of the DHT that was there at `seen`, seconds since the Unix epoch. `where`: "ip:port,…"."""

    name: str
    where: str
    seen: float


def worth_a_try(servers: Iterable[Remembered], now: float) -> list[Remembered]:
    """Those that are not too old."""
    return [it for it in servers if now - it.seen < OLD]


def remember(nodes: Iterable[Node], former: Iterable[Remembered], now: float) -> tuple[Remembered, ...]:
    """For the next run: one that starts without its uplink shall not forget all that is beyond."""
    others = {it.name: it for it in worth_a_try(former, now)}
    known: list[Remembered] = []
    for node in nodes:
        old = others.pop(node.name, None)
        fresh = old is not None and 0 <= now - old.seen < HOUR
        known.append(Remembered(node.name, node.where, old.seen if old is not None and fresh else now))
    return (*known, *others.values())[:MAX_REMEMBERED]
