"""Prometheus metrics, read from the directory when asked; nothing costs in between."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .core.model import Source
from .directory import Directory


class DirectoryCollector(Collector):
    """Peers by source, watchers, lookups, publications and refusals."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not look."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        directory = self._directory
        peers = GaugeMetricFamily("causeway_discovery_peers", "Peers that a source names.", labels=["source"])
        known = directory.peers.values()
        for source in Source:
            if source is not Source.SELF:
                peers.add_metric([source.name.lower()], sum(source in peer.sources for peer in known))
        yield peers
        yield GaugeMetricFamily("causeway_discovery_services", "Services known.", len(directory.services))
        yield GaugeMetricFamily("causeway_discovery_watchers", "Watches open.", directory.watchers)
        yield GaugeMetricFamily("causeway_discovery_warnings", "Warnings standing.", len(directory.board.warnings))
        for name, label, text in (
            ("lookups", "result", "Names resolved: local, found, stale, unknown."),
            ("publishes", "result", "Publications of the own record: ok, failed."),
            ("refused", "reason", "Records of other nodes refused."),
            ("visitors", "result", "Connections on the public port: admitted, refused (no TLS), evicted (too many)."),
        ):
            counter = CounterMetricFamily(f"causeway_discovery_{name}_total", text, labels=[label])
            for (kind, value), number in sorted(directory.counts.items()):
                if kind == name:
                    counter.add_metric([value], number)
            yield counter
