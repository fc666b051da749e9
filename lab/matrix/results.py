"""What all runs came to: cells, verdict, JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lab.matrix.flow import BULK, IDLE, REQUEST, TCP, UDP, Finding
from lab.stalls import percentile

COLUMNS = tuple((protocol, load) for protocol in (TCP, UDP) for load in (IDLE, REQUEST, BULK))
SCHEMA = 1
NOTHING = "nothing"  # the event that shows what is usual
Key = tuple[str, str, str, str]
"""Of a cell: event, network, protocol and load."""


@dataclass(frozen=True)
class Run:
    """One event under one set of connections."""

    event: str
    net: str
    number: int
    """Of the run of this event in this network, from 1."""
    at: float
    """When it happened, seconds since 1970: as in the nodes' logs."""
    took: float
    """Seconds from the beginning of the event until it had happened; a drain takes its time."""
    before: str
    """Links of a and b before …"""
    after: str
    """… and after."""
    findings: list[Finding]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "findings": [it.as_dict() for it in self.findings]}

    @property
    def intact(self) -> bool:
        """Whether nothing was lost that must not be."""
        return all(it.intact for it in self.findings)


@dataclass(frozen=True)
class Cell:
    """All findings of one event in one network with one kind of connection."""

    event: str
    net: str
    protocol: str
    load: str
    runs: int
    stalls: list[float]
    """Seconds, of the runs in which the connection went on."""
    never: int
    """Runs in which it did not."""
    sent: int
    """Bytes, as all that follow."""
    lost: int
    repeated: int
    swapped: int
    foreign: int
    resets: int
    """Connections that broke."""

    @property
    def median(self) -> float | None:
        """Seconds; None when it never went on."""
        return statistics.median(self.stalls) if self.stalls else None

    @property
    def p99(self) -> float | None:
        """Nearest rank: of fewer than 100 runs the longest."""
        return percentile(self.stalls, 0.99) if self.stalls else None

    @property
    def longest(self) -> float | None:
        """Seconds."""
        return max(self.stalls, default=None)

    @property
    def lost_share(self) -> float:
        """Share of what was sent, 0 to 1."""
        return self.lost / self.sent if self.sent else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with the stalls in milliseconds as in the other reports."""
        fields = {key: value for key, value in vars(self).items() if key != "stalls"}
        times = {"median_ms": self.median, "p99_ms": self.p99, "max_ms": self.longest}
        return {**fields, **{key: None if it is None else round(it * 1000, 1) for key, it in times.items()}}


@dataclass
class Matrix:
    """Everything; `ok` is the verdict."""

    host: dict[str, Any] = field(default_factory=dict)
    """Machine, versions, and what else the machine was doing."""
    titles: dict[str, str] = field(default_factory=dict)
    """Events that were asked for, by name, in order."""
    limits: dict[str, float] = field(default_factory=dict)
    """Seconds, by event, see lab/matrix/events.py; events without one are missing."""
    usual: dict[str, str] = field(default_factory=dict)
    """By event, the one that shows what is usual where it leads; those that are missing: NOTHING."""
    nets: dict[str, str] = field(default_factory=dict)
    """Networks that were asked for, by name, with a description."""
    runs: list[Run] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Runs that could not be made or measured, and why."""
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def whole(self) -> bool:
        """Whether there is something, all of it could be measured, and no TCP byte was lost and no TCP stream reset."""
        return bool(self.runs) and not self.failures and all(it.intact for it in self.runs)

    @property
    def ok(self) -> bool:
        """Whether it is whole, and all limits are met."""
        return self.whole and not self.missed()

    def allowed(self) -> dict[Key, float]:
        """Seconds that the 99th percentile of a cell's stalls may take: the limit of its event, and what the same connection
        in the same network shows when nothing happens. Cells without a limit are missing."""
        cells = self.cells()

        def most(event: str, net: str, protocol: str, load: str) -> float:
            calm = cells.get((self.usual.get(event, NOTHING), net, protocol, load))
            return self.limits[event] + (calm.p99 or 0.0 if calm else 0.0)

        return {key: most(*key) for key in cells if key[0] in self.limits}

    def missed(self) -> list[Cell]:
        """Those beyond what is allowed, or that never went on."""
        cells = self.cells()
        return [
            cells[key] for key, most in self.allowed().items() if cells[key].never or (cells[key].p99 or 0.0) > most
        ]

    def cells(self) -> dict[Key, Cell]:
        """Those without a run are missing."""
        found: dict[Key, list[Finding]] = {}
        for run in self.runs:
            for it in run.findings:
                found.setdefault((run.event, run.net, it.protocol, it.load), []).append(it)
        return {key: _cell(key, every) for key, every in found.items()}

    def as_json(self) -> str:
        """The stable form. Times of runs in seconds, summaries in milliseconds, sizes in bytes."""
        allowed = self.allowed()
        return json.dumps(
            {
                "schema": SCHEMA,
                "ok": self.ok,
                "interrupted": self.interrupted,
                "seconds": round(self.seconds, 1),
                "host": self.host,
                "events": self.titles,
                "limits_ms": {event: round(limit * 1000, 1) for event, limit in self.limits.items()},
                "usual": self.usual,
                "nets": self.nets,
                "failures": self.failures,
                "cells": [
                    {**it.as_dict(), "allowed_ms": round(allowed[key] * 1000, 1) if key in allowed else None}
                    for key, it in self.cells().items()
                ],
                "runs": [it.as_dict() for it in self.runs],
            },
            indent=1,
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Matrix:
        """Reads as_json back. Raises ValueError for another schema."""
        plain = json.loads(text)
        if plain.get("schema") != SCHEMA:
            raise ValueError(f"schema is {plain.get('schema')!r}, expected {SCHEMA}")
        runs = [Run(**{**it, "findings": [Finding(**found) for found in it["findings"]]}) for it in plain["runs"]]
        kept = {key: plain[key] for key in ("host", "nets", "failures", "seconds", "interrupted")}
        limits = {event: limit / 1000 for event, limit in plain.get("limits_ms", {}).items()}
        return cls(titles=plain["events"], limits=limits, usual=plain.get("usual", {}), runs=runs, **kept)

    def add(self, other: Matrix) -> None:
        """Takes over what was measured elsewhere, or at another time; a busy machine stays one."""
        self.host = {**other.host, **self.host, "busy": self.host.get("busy") or other.host.get("busy", "")}
        self.titles = {**self.titles, **other.titles}
        self.limits = {**self.limits, **other.limits}
        self.usual = {**self.usual, **other.usual}
        self.nets = {**self.nets, **other.nets}
        self.runs += other.runs
        self.failures += other.failures
        self.seconds += other.seconds
        self.interrupted = self.interrupted or other.interrupted

    def verdict(self) -> str:
        """One line."""
        tcp = [it for run in self.runs for it in run.findings if it.protocol == TCP]
        if not tcp:
            return "nothing was measured"
        harm = {
            "lost": sum(it.lost for it in tcp),
            "doubled": sum(it.repeated for it in tcp),
            "in the wrong place": sum(it.swapped for it in tcp),
            "never sent": sum(it.foreign for it in tcp),
        }
        harmed = ", ".join(f"{count:,} bytes {what}" for what, count in harm.items() if count)
        resets = sum(bool(it.broken) for it in tcp)
        if harmed or resets:
            return f"HARM: TCP: {harmed or 'no byte lost'}; {resets} of {len(tcp)} streams broke"
        carried = sum(it.sent for it in tcp) / 1e6
        whole = f"nothing lost: {len(tcp)} TCP streams, {carried:,.0f} MB there and back, no byte lost, none reset"
        judged, missed = len(self.allowed()), len(self.missed())
        return f"{whole}; {judged - missed} of {judged} cells within their limit" if judged else whole


def _cell(key: Key, found: Iterable[Finding]) -> Cell:
    every = list(found)
    return Cell(
        *key,
        runs=len(every),
        stalls=[it.stall for it in every if it.stall is not None],
        never=sum(it.stall is None for it in every),
        sent=sum(it.sent for it in every),
        lost=sum(it.lost for it in every),
        repeated=sum(it.repeated for it in every),
        swapped=sum(it.swapped for it in every),
        foreign=sum(it.foreign for it in every),
        resets=sum(bool(it.broken) for it in every),
    )
