"""One connection of the client: what it sent when, what came back when, and what that says about an event.

No sockets and no clock in here: the client (client.py) moves the bytes and says when.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from lab.matrix.content import Reader, Tally, block
from lab.stalls import longest_gap, longest_wait

IDLE, REQUEST, BULK = "idle", "request/response", "bulk"
TCP, UDP = "TCP", "UDP"


@dataclass(frozen=True)
class Pace:
    """What a connection sends."""

    protocol: str
    load: str
    size: int
    """Bytes of a block; of a datagram."""
    every: float = 0.0
    """Seconds between two sendings; 0: sends only when told to."""
    batch: int = 1
    """Blocks a sending."""


def paces(load: str, bulk_rate: float) -> list[Pace]:
    """The connections of a load, TCP and UDP. bulk_rate: of TCP, bits per second."""
    if load == IDLE:
        return [Pace(TCP, IDLE, 64), Pace(UDP, IDLE, 64)]
    if load == REQUEST:
        return [Pace(TCP, REQUEST, 64, 0.010), Pace(UDP, REQUEST, 64, 0.020)]
    every, size = 0.004, 1000  # so small a step that gaps are exact to some milliseconds
    batch = max(1, round(bulk_rate * every / 8 / size))
    return [Pace(TCP, BULK, size, every, batch), Pace(UDP, BULK, 1200, 0.010)]


@dataclass(frozen=True)
class Finding:
    """What the client of one connection noticed of one event. The JSON of a run holds these."""

    protocol: str
    load: str
    stall: float | None
    """Seconds, see the package; None: it never went on."""
    stall_after: float
    """Seconds from the event to the beginning of the stall; negative: it waited already."""
    normal: float
    """Seconds that were taken off: the usual round trip, or the usual gap."""
    sent: int
    """Bytes."""
    lost: int
    """Bytes that did not come back, in whole blocks."""
    repeated: int
    """Bytes that came again."""
    swapped: int
    """Bytes that came behind later ones; datagrams may."""
    foreign: int
    """Bytes that were never sent."""
    broken: str
    """How the connection broke; empty when it ended as it should."""

    @property
    def intact(self) -> bool:
        """Whether the network kept its promise, which for UDP is to make nothing up."""
        if self.protocol == UDP:
            return not self.foreign
        return not (self.lost or self.repeated or self.swapped or self.foreign or self.broken)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; read back by Finding(**it)."""
        return asdict(self)


class Flow:
    """See the module."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.sent: list[float] = []
        """When each block was sent."""
        self.answered: list[float | None] = []
        """When it first came back."""
        self.arrivals: list[float] = []
        """When anything came."""
        self.broken = ""
        self._reader = Reader(pace.size)
        self._datagrams = Tally()
        self._oldest = 0  # before this one all are answered

    def message(self, now: float) -> bytes:
        """What is sent next, now."""
        first = len(self.sent)
        self.sent += [now] * self.pace.batch
        self.answered += [None] * self.pace.batch
        return b"".join(block(number, self.pace.size) for number in range(first, len(self.sent)))

    def receive(self, data: bytes, now: float) -> None:
        """Bytes of the stream, or one datagram, came."""
        if self.pace.protocol == TCP:
            numbers = self._reader.feed(data, len(self.sent))
        else:
            numbers = Reader(self.pace.size).feed(data, len(self.sent)) if len(data) == self.pace.size else []
            if not numbers:
                self._reader.foreign += len(data)
            numbers = [it for it in numbers if self._datagrams.count(it)]
        self.arrivals.append(now)
        for number in numbers:
            self.answered[number] = now

    @property
    def complete(self) -> bool:
        """Whether all that was sent came back."""
        return self.waiting_since is None

    @property
    def waiting_since(self) -> float | None:
        """When the oldest block without an answer was sent."""
        while self._oldest < len(self.sent) and self.answered[self._oldest] is not None:
            self._oldest += 1
        return self.sent[self._oldest] if self._oldest < len(self.sent) else None

    def flows(self, now: float, lag: float) -> bool:
        """Whether it is as usual: for TCP nothing has waited longer than `lag`, for UDP something came within it, or
        since the last question."""
        if self.pace.protocol == UDP:
            recent = now - lag if self.pace.every else self.sent[-1]
            return bool(self.arrivals) and self.arrivals[-1] >= recent
        since = self.waiting_since
        return since is None or now - since < lag

    def finding(self, event: float, end: float) -> Finding:
        """What an event at `event` did until `end`, the time when sending stopped."""
        gaps = self.pace.every > 0 and (self.pace.protocol == UDP or self.pace.load == BULK)
        if gaps:
            normal = self.pace.every
            stall, began = longest_gap([*(it for it in self.arrivals if it < end), end], event, end)
            over = not self.arrivals or end - self.arrivals[-1] >= stall > 1.0  # it was still waiting when we gave up
        else:
            normal = self._usual_wait(event)
            asked, answered = self.sent, self.answered
            if self.pace.protocol == UDP:  # asks again and again: the first answer ends the wait of the first question
                asked, answered = self._first_question(event)
            stall, began = longest_wait(asked, answered, event, end)
            over = None in answered
        size, tally = self.pace.size, self._datagrams if self.pace.protocol == UDP else self._reader.tally
        return Finding(
            self.pace.protocol,
            self.pace.load,
            None if over or (self.broken and self.pace.protocol == TCP) else round(max(0.0, stall - normal), 4),
            round(began - event, 4),
            round(normal, 4),
            size * len(self.sent),
            size * tally.lost(len(self.sent)),
            size * tally.repeated,
            size * tally.swapped,
            self._reader.foreign + self._reader.pending,
            self.broken,
        )

    def _usual_wait(self, event: float) -> float:
        """Median round trip before the event."""
        waits = [
            answer - sent
            for sent, answer in zip(self.sent, self.answered, strict=True)
            if answer is not None and answer < event
        ]
        return statistics.median(waits) if waits else 0.0

    def _first_question(self, event: float) -> tuple[list[float], list[float | None]]:
        """The first datagram since the event, answered by the first answer to any."""
        asked = [it for it in self.sent if it >= event][:1]
        pairs = zip(self.sent, self.answered, strict=True)
        first = min((answer for sent, answer in pairs if sent >= event and answer is not None), default=math.inf)
        return asked, [first if first < math.inf else None for _ in asked]
