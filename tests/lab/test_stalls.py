"""Gaps, waits and percentiles, by hand."""

import pytest

from lab.stalls import longest_gap, longest_wait, percentile


def test_a_gap_counts_when_it_touches_the_interval() -> None:
    times = [0.0, 1.0, 1.25, 1.5, 3.5, 3.625]
    assert longest_gap(times, 0.5, 0.6) == (1.0, 0.0)
    assert longest_gap(times, 1.125, 1.25) == (0.25, 1.0)
    assert longest_gap(times, 1.0, 4.0) == (2.0, 1.5)
    assert longest_gap(times, 1.0, 4.0, cut=2.0) == (1.0, 0.0)  # what follows 2.0 belongs to another interval
    assert longest_gap(times, 5.0, 6.0) == (0.0, 5.0)
    assert longest_gap([], 1.0, 2.0) == (0.0, 1.0)


def test_a_wait_counts_when_the_answer_was_missing_at_the_start() -> None:
    asked = [0.0, 1.0, 1.9, 2.1]
    answered = [1.5, 2.2, 2.0, 2.15]
    assert longest_wait(asked, answered, 2.0, 3.0) == (pytest.approx(1.2), 1.0)  # not the first, which was longer
    assert longest_wait(asked, answered, 2.18, 3.0) == (pytest.approx(1.2), 1.0)
    assert longest_wait(asked, answered, 2.5, 3.0) == (0.0, 2.5)


def test_a_request_without_an_answer_waits_until_the_end() -> None:
    assert longest_wait([1.0, 2.0], [None, 2.1], 1.5, 9.0) == (8.0, 1.0)


def test_percentiles_are_nearest_ranks() -> None:
    hundred = [float(it) for it in range(100, 0, -1)]
    assert percentile(hundred, 0.99) == 99.0
    assert percentile(hundred, 0.5) == 50.0
    assert percentile(hundred[:50], 0.99) == 100.0
    assert percentile([4.0], 0.99) == 4.0
    assert percentile([4.0, 2.0], 0.0) == 2.0
