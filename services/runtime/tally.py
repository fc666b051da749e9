"""Metrics of what happens for each connection: read when somebody asks, next to nothing for whoever counts.

Prometheus' own counters take a lock and a microsecond for each increment (measured), and twice that to find the labels.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import REGISTRY, Collector, CollectorRegistry

from services.runtime.core.buckets import Buckets

Labels = tuple[str, ...]


class Tally(Collector):
    """A counter: `counts[labels] += 1`."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry = REGISTRY) -> None:
        self.counts: defaultdict[Labels, int] = defaultdict(int)
        self._family = (name, text, labels)
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Called from the thread that serves metrics: reads a copy."""
        name, text, labels = self._family
        family = CounterMetricFamily(name, text, labels=labels)
        for values, count in self.counts.copy().items():
            family.add_metric(values, count)
        yield family


class Timings(Collector):
    """A histogram of seconds."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """bounds: of the buckets, in seconds, ascending; one for all that is later is added."""
        self._family = (name, text, labels)
        self._bounds = bounds
        self._buckets: dict[Labels, Buckets] = {}
        registry.register(self)

    def observe(self, labels: Labels, seconds: float) -> None:
        buckets = self._buckets.get(labels)
        if buckets is None:
            buckets = self._buckets[labels] = Buckets(self._bounds)
        buckets.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """As in Tally."""
        name, text, labels = self._family
        family = HistogramMetricFamily(name, text, labels=labels)
        for values, buckets in self._buckets.copy().items():
            family.add_metric(values, buckets.cumulated(), buckets.total)
        yield family
