"""How long a client had to wait: gaps and waits around an event, and what many of them come to. Seconds throughout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def longest_gap(times: Sequence[float], start: float, end: float, cut: float = math.inf) -> tuple[float, float]:
    """The longest time without an arrival among the gaps that touch [start, end], counted up to `cut`, and when it
    began; (0, start) when there is none. times: of arrivals, in order."""
    longest, began = 0.0, start
    for before, after in pairwise(times):
        if after >= start and before <= end and min(after, cut) - before > longest:
            longest, began = min(after, cut) - before, before
    return longest, began


def longest_wait(
    asked: Sequence[float], answered: Sequence[float | None], start: float, end: float
) -> tuple[float, float]:
    """The longest wait of a request whose answer had not come at `start`, and when it began; (0, start) when there is
    none. asked: when each request was sent; answered: when its answer came, None for not until `end`."""
    longest, began = 0.0, start
    for sent, answer in zip(asked, answered, strict=True):
        if (answer is None or answer >= start) and (end if answer is None else answer) - sent > longest:
            longest, began = (end if answer is None else answer) - sent, sent
    return longest, began


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed (nearest rank): the 99th percentile of fewer than 100 is
    the greatest."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
