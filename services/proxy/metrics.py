"""The proxy's counters in Prometheus' format, read when somebody asks. Imported only where metrics are served."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import REGISTRY, Collector

from services.proxy.counters import Counters, Local

LOCAL = "local"
"""The path of what stays on this node, among those of causeway_tunnel_bytes_total."""


class ProxyCollector(Collector):
    """Called from the thread that serves metrics: reads copies."""

    def __init__(self, counters: Counters, listeners: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._counters = counters
        self._listeners = listeners
        self._waiting = waiting

    def collect(self) -> Iterator[Metric]:
        counters = self._counters
        yield _by_service("accepted", "Connections and flows accepted from applications.", counters.accepted)
        yield _by_service("dialled", "Connections and flows made to backends on this node.", counters.dialled)
        yield _by_service("retried", "Attempts beyond a client's first, before anything was sent.", counters.retried)
        yield _by_service("ejected", "Times a backend was left out because it failed.", counters.ejected)
        refused = CounterMetricFamily(
            "causeway_proxy_refused", "Clients and inbound streams refused.", labels=["direction", "target", "reason"]
        )
        for reason, count in counters.refused_inbound.copy().items():
            refused.add_metric(["inbound", "", reason], count)
        for (service, reason), count in counters.refused_local.copy().items():
            refused.add_metric(["outbound", service, reason], count)
        yield refused
        yield from _local(counters.local.copy())
        dropped = CounterMetricFamily(
            "causeway_proxy_datagrams_dropped", "First datagrams of flows that were dropped.", labels=["reason"]
        )
        for reason, count in counters.dropped.copy().items():
            dropped.add_metric([reason], count)
        yield dropped
        questions = CounterMetricFamily(
            "causeway_proxy_dns_queries", "Questions to the DNS, by what became of them.", labels=["kind", "result"]
        )
        for (kind, result), count in counters.dns.copy().items():
            questions.add_metric([kind, result], count)
        yield questions
        requests = CounterMetricFamily(
            "causeway_proxy_gateway_requests", "Requests that gateways answered.", labels=["route", "code"]
        )
        for (route, code), count in counters.requests.copy().items():
            requests.add_metric([route, code], count)
        yield requests
        yield GaugeMetricFamily("causeway_proxy_listeners", "Addresses listened on.", self._listeners())
        yield GaugeMetricFamily(
            "causeway_proxy_waiting", "Sockets and answers that wait for the tunnel to take them.", self._waiting()
        )


def _by_service(name: str, text: str, counts: Counter[str]) -> Metric:
    family = CounterMetricFamily(f"causeway_proxy_{name}", text, labels=["target"])
    for service, count in counts.copy().items():
        family.add_metric([service], count)
    return family


def _local(carried: Mapping[str, Local]) -> Iterator[Metric]:
    """As the tunnel has them for the other paths."""
    size = CounterMetricFamily(
        "causeway_proxy_bytes",
        "Bytes that connections within the node carried.",
        labels=["direction", "service", "path"],
    )
    first = HistogramMetricFamily(
        "causeway_proxy_first_byte_seconds",
        "From when a client came until the first byte or datagram of a backend on its node did.",
        labels=["service", "path"],
    )
    for service, one in carried.items():
        for direction, count in zip(("out", "in"), one.bytes, strict=True):
            size.add_metric([direction, service, LOCAL], count)
        first.add_metric([service, LOCAL], one.first.cumulated(), one.first.total)
    yield size
    yield first


def register(counters: Counters, listeners: Callable[[], int], waiting: Callable[[], int]) -> Callable[[], None]:
    """Adds the counters to what the process serves; returns the way to take them out again."""
    collector = ProxyCollector(counters, listeners, waiting)
    REGISTRY.register(collector)
    return lambda: REGISTRY.unregister(collector)
