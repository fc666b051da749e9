"""Prometheus metrics, read from the directory when asked; nothing costs in between."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .core.model import Source
from .directory import Directory
from .sources.dht import Dht


class DirectoryCollector(Collector):
    """Peers by source, watchers, lookups, publications, refusals, and the DHT."""

    def __init__(self, directory: Directory, dht: Dht) -> None:
        self._directory = directory
        self._dht = dht

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
        overlay = self._dht.overlay
        for name, text, size in (
            ("servers", "Servers of the DHT in the routing table.", len(overlay.table)),
            ("records", "Records kept for others.", len(overlay.records)),
            ("record_bytes", "Bytes of records kept for others.", overlay.records.bytes),
            ("relays", "Relays heard of.", len(overlay.relays)),
            ("holders", "Servers that are to keep the own record.", len(self._dht.holders)),
        ):
            yield GaugeMetricFamily(f"causeway_discovery_dht_{name}", text, size)
        for name, label, text in (
            ("lookups", "result", "Names resolved: local, found, stale, unknown."),
            ("publishes", "result", "Publications of the own record: ok, failed."),
            ("refused", "reason", "Records and calls of other nodes refused."),
            ("searches", "result", "Names looked for in the DHT: found, unknown."),
            ("dht_calls", "result", "Questions to servers of the DHT: ok, failed."),
            ("dials", "result", "Dials for other nodes, by their outcome or the reason of a refusal."),
            ("visitors", "result", "Connections on the public port: admitted, refused (no TLS), evicted (too many)."),
        ):
            counter = CounterMetricFamily(f"causeway_discovery_{name}_total", text, labels=[label])
            for (kind, value), number in sorted(directory.counts.items()):
                if kind == name:
                    counter.add_metric([value], number)
            yield counter
