"""Durations by how long they were, as Prometheus' histograms want them."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

FIRST_BYTE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Bounds for the time until a client's first byte, seconds; the same for what the tunnel carries and what stays on the node."""


class Buckets:
    """How many did not exceed which of the `bounds`, ascending, in seconds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.total = 0.0
        """Seconds of all together."""
        self._counts = [0] * (len(bounds) + 1)  # the last: longer than all bounds

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def cumulated(self) -> list[tuple[str, int]]:
        """Each bound in words, with how many did not exceed it; "+Inf": all."""
        return list(zip([*map(str, self.bounds), "+Inf"], accumulate(self._counts), strict=True))
