"""A real HTTP client at a, and when its bytes arrived."""

from __future__ import annotations

import asyncio
import bisect
import fcntl
import hashlib
import math
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise

from lab.child import Child
from lab.place import Place
from lab.stalls import longest_gap

PIECE = 256 << 10  # bytes read at once
CLIENT_EXIT = 10.0  # seconds from the end of its output to the end of the client
PIPE = 1 << 20  # bytes; as much as an ordinary user may ask for (fs.pipe-max-size)


def client_name() -> str:
    """Name of the client that downloads, for people."""
    return "curl" if shutil.which("curl") else "urllib"


def client(url: str) -> list[str]:
    """The command that downloads: curl, or our own where there is none."""
    if curl := shutil.which("curl"):
        return [curl, "--silent", "--show-error", "--fail", "--no-buffer", "--noproxy", "*", url]
    return [sys.executable, "-m", "causeway.demo.fetch", url]


@dataclass
class Arrivals:
    """When bytes came: monotonic seconds, and how many there were by then."""

    times: list[float] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)

    def add(self, now: float, total: int) -> None:
        """At `now`, `total` bytes had come."""
        self.times.append(now)
        self.totals.append(total)

    def longest_gap(self, start: float, end: float, cut: float = math.inf) -> float:
        """The longest time without a byte, in seconds, among the gaps that touch [start, end]; counted up to `cut`."""
        return longest_gap(self.times, start, end, cut)[0]

    def longest_inner_gap(self, start: float, end: float) -> float:
        """The same among the gaps that lie wholly inside [start, end]."""
        pairs = pairwise(self.times)
        return max((after - before for before, after in pairs if before >= start and after <= end), default=0.0)

    def since(self, start: float) -> int:
        """Bytes that have come since a moment."""
        index = bisect.bisect_left(self.times, start)
        if index >= len(self.times):
            return 0
        return self.totals[-1] - (self.totals[index - 1] if index else 0)

    def rates(self, bin_seconds: float) -> list[float]:
        """Bits a second in consecutive intervals since the first arrival."""
        if not self.times:
            return []
        start = self.times[0]
        sums = [0] * (int((self.times[-1] - start) / bin_seconds) + 1)
        before = 0
        for at, total in zip(self.times, self.totals, strict=True):
            sums[int((at - start) / bin_seconds)] += total - before
            before = total
        return [it * 8 / bin_seconds for it in sums]


class Download:
    """One running download. A thread reads, so that no other work delays the time stamps by much."""

    def __init__(self, url: str, place: Place) -> None:
        self.arrivals = Arrivals()
        self.received = 0
        self.started = time.monotonic()
        self._digest = hashlib.sha256()
        self._child = Child(client(url), output=None, namespace=place.namespace)
        fcntl.fcntl(self._child.stdout, fcntl.F_SETPIPE_SZ, PIPE)
        self._thread = threading.Thread(target=self._read, name="download", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether more may come."""
        return self._thread.is_alive()

    @property
    def sha256(self) -> str:
        """Of what has come, in hexadecimal; ask after the end."""
        return self._digest.hexdigest()

    async def end(self) -> int:
        """Waits for the end of the client and returns its exit code; 0: it is content."""
        await asyncio.to_thread(self._thread.join)
        try:
            return await self._child.wait(CLIENT_EXIT)
        finally:
            self._child.kill()

    def cancel(self) -> None:
        """Ends the client."""
        self._child.signal(signal.SIGKILL)
        self._thread.join()
        self._child.kill()

    def _read(self) -> None:
        pipe = self._child.stdout.fileno()
        while piece := os.read(pipe, PIECE):
            self.received += len(piece)
            self.arrivals.add(time.monotonic(), self.received)
            self._digest.update(piece)
