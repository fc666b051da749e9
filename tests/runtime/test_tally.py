"""What tallies and timings say to Prometheus."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.runtime.tally import Tally, Timings


def test_a_tally_counts_by_labels() -> None:
    registry = CollectorRegistry()
    tally = Tally("cw_things", "Things.", ["kind", "way"], registry)
    assert registry.get_sample_value("cw_things_total", {"kind": "a", "way": "out"}) is None
    tally.counts["a", "out"] += 2
    tally.counts["a", "in"] += 40
    assert registry.get_sample_value("cw_things_total", {"kind": "a", "way": "out"}) == 2
    assert registry.get_sample_value("cw_things_total", {"kind": "a", "way": "in"}) == 40


def test_timings_are_a_histogram() -> None:
    registry = CollectorRegistry()
    timings = Timings("cw_wait_seconds", "Waits.", ["service"], (0.01, 1.0), registry)
    for seconds in (0.002, 0.01, 0.5, 7.0):
        timings.observe(("web",), seconds)
    buckets = {
        bound: registry.get_sample_value("cw_wait_seconds_bucket", {"service": "web", "le": bound})
        for bound in ("0.01", "1.0", "+Inf")
    }
    assert buckets == {"0.01": 2, "1.0": 3, "+Inf": 4}, "a bound is within its bucket, and buckets add up"
    assert registry.get_sample_value("cw_wait_seconds_count", {"service": "web"}) == 4
    assert registry.get_sample_value("cw_wait_seconds_sum", {"service": "web"}) == pytest.approx(7.512)
    assert b"# TYPE cw_wait_seconds histogram" in generate_latest(registry)
