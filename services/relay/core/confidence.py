"""Whether this node can be reached, by what became of dials from other nodes (vantages).

Each address has a window of the last dials to it, and a verdict that changes only when successes and failures differ
enough there: neither one lost packet nor one liar decides. AutoNATv2 does so, and its numbers are taken: a window of
5, decided at 2. An address is up only when two vantages got through, or the only one that there is did so twice.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

WINDOW = 5
CONFIDENCE = 2
VANTAGES = 2
MAX_ADDRESSES = 8
"""Addresses with a window; beyond, the one that was not dialled for longest is forgotten. A host has few."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One dial. `detail`: how it ended, for a person; `throughput` in bytes per second, 0: not measured."""

    vantage: str
    success: bool
    detail: str
    throughput: int = 0


class Window:
    """The last dials to one address. `up` None: not decided; `since`: when `up` was decided, on the caller's clock."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=WINDOW)
        self.up: bool | None = None
        self.since = 0.0
        self.remembered = 0
        """Throughput of a former run, bytes per second."""

    def add(self, sample: Sample, now: float) -> None:
        """One more dial. A failed one decides nothing for the better, even if it lets a vantage that failed be forgotten."""
        self.samples.append(sample)
        good = {it.vantage for it in self.samples if it.success}
        lead = sum(1 if it.success else -1 for it in self.samples)
        if (
            sample.success
            and lead >= CONFIDENCE
            and len(good) >= min(VANTAGES, len({it.vantage for it in self.samples}))
        ):
            self._decide(True, now)
        elif lead <= -CONFIDENCE:
            self._decide(False, now)

    def _decide(self, up: bool, now: float) -> None:
        if self.up is not up:
            self.up, self.since, self.remembered = up, now, self.remembered if up else 0

    @property
    def settled(self) -> bool:
        """Decided, and the last dial said nothing else."""
        return self.up is not None and (not self.samples or self.samples[-1].success is self.up)

    @property
    def throughput(self) -> int:
        """The best that was measured, bytes per second: what a vantage's own link allows says nothing of ours."""
        return max((it.throughput for it in self.samples if it.success), default=0) or self.remembered

    def witnesses(self, success: bool) -> list[str]:
        """Vantages whose dials ended so, each once."""
        return list(dict.fromkeys(it.vantage for it in self.samples if it.success is success))

    def failure(self) -> str:
        """How the last dial that failed did so; empty when none did."""
        return next((f"{it.vantage}: {it.detail}" for it in reversed(self.samples) if not it.success), "")


class Reachability:
    """The windows of all addresses (IP literals) of this node that were dialled."""

    def __init__(self) -> None:
        self._windows: OrderedDict[str, Window] = OrderedDict()

    def add(self, ip: str, sample: Sample, now: float) -> None:
        """A vantage dialled `ip`."""
        window = self._windows.setdefault(ip, Window())
        self._windows.move_to_end(ip)
        if len(self._windows) > MAX_ADDRESSES:
            self._windows.popitem(last=False)
        window.add(sample, now)

    def miss(self, vantage: str, detail: str, now: float) -> None:
        """A vantage that used to come did not come back: a failure wherever it had got through."""
        for window in self._windows.values():
            if vantage in window.witnesses(True):
                window.add(Sample(vantage, False, detail), now)

    def remember(self, ip: str, throughput: int, now: float) -> None:
        """It was up a short while ago, in a former run of this service: believed until dials say otherwise."""
        if ip not in self._windows and len(self._windows) < MAX_ADDRESSES:
            window = self._windows[ip] = Window()
            window.up, window.since, window.remembered = True, now, throughput

    def forget(self, ips: Iterable[str]) -> None:
        """This node does not have these addresses any more."""
        for ip in ips:
            self._windows.pop(ip, None)

    def verdict(self, ip: str) -> bool | None:
        """None: not decided."""
        window = self._windows.get(ip)
        return window.up if window is not None else None

    def up(self) -> dict[str, Window]:
        """By address, those that can be reached."""
        return {ip: window for ip, window in self._windows.items() if window.up}

    def down(self) -> dict[str, Window]:
        """By address, those that cannot."""
        return {ip: window for ip, window in self._windows.items() if window.up is False}

    @property
    def settled(self) -> bool:
        """Something is decided, and nothing contradicts."""
        return bool(self._windows) and all(window.settled for window in self._windows.values())

    @property
    def throughput(self) -> int:
        """Bytes per second, the best of all addresses that are up; 0: not measured."""
        return max((window.throughput for window in self.up().values()), default=0)

    @property
    def since(self) -> float:
        """When the first of those that are up came up; 0: none is."""
        return min((window.since for window in self.up().values()), default=0.0)

    def __len__(self) -> int:
        return len(self._windows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._windows)
