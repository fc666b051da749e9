"""Prometheus metrics, read from the relay's status when asked: nothing is counted twice, nothing costs in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .status import Status

TIMEOUT = 5.0
"""Seconds for the loop to answer."""


class RelayCollector(Collector):
    """Prometheus asks from a thread of its own; the status is taken in the loop's."""

    def __init__(self, status: Callable[[], Status], loop: asyncio.AbstractEventLoop) -> None:
        self._status = status
        self._loop = loop

    async def _ask(self) -> Status:
        return self._status()

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not ask for the status."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        s = asyncio.run_coroutine_threadsafe(self._ask(), self._loop).result(TIMEOUT)
        yield GaugeMetricFamily("causeway_relay_active", "1 while the public port serves.", s.active)
        yield GaugeMetricFamily("causeway_relay_draining", "1 while nothing new is let in.", s.draining)
        yield GaugeMetricFamily(
            "causeway_relay_load_permille",
            "Share of the tightest limit in use; reservations count for up to 800.",
            s.load_permille,
        )
        yield GaugeMetricFamily("causeway_relay_reservations", "Peers that hold a reservation.", len(s.reservations))
        yield GaugeMetricFamily("causeway_relay_circuits", "Circuits open.", len(s.circuits))
        yield GaugeMetricFamily("causeway_relay_control_connections", "Control connections open.", s.connections)
        yield GaugeMetricFamily("causeway_relay_half_open", "Connections that have not said who they are.", s.half_open)
        conditions = GaugeMetricFamily(
            "causeway_relay_condition", "1 while the condition holds; why.", labels=["type", "reason"]
        )
        for condition in s.conditions:
            conditions.add_metric([condition.type, condition.reason], condition.status)
        yield conditions
        yield CounterMetricFamily("causeway_relay_circuits_total", "Circuits opened.", value=s.circuits_total)
        yield CounterMetricFamily("causeway_relay_bytes_total", "Bytes carried.", value=s.bytes_total)
        yield CounterMetricFamily("causeway_relay_splices_total", "splice(2) calls.", value=s.splices_total)
        refused = CounterMetricFamily("causeway_relay_refused_total", "What was refused.", labels=["reason"])
        for reason, number in sorted(s.refused.items()):
            refused.add_metric([reason], number)
        yield refused
