"""The listeners that exist, kept equal to those that services ask for."""

import asyncio
import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from logging import Logger

from services.proxy.core import plan
from services.proxy.core.catalog import Port, Service, Spot
from services.proxy.core.plan import Wanted
from services.proxy.core.traffic import ROUND_ROBIN, Traffic
from services.proxy.counters import Counters
from services.proxy.departure import Departure, Route
from services.proxy.tcp import TcpListener
from services.proxy.udp import UdpListener

RETRY_FIRST = 1.0  # s until an address that could not be had is tried again; doubles up to RETRY_LAST
RETRY_LAST = 60.0

NOT_LOCAL = "not a local address: give this host the address, or choose a clusterIP in 127.0.0.0/8"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of status."""

    spot: Spot
    label: str
    endpoints: int  # ready, on known nodes
    error: str
    balancing: str = ""
    ejected: int = 0


class Listeners:
    """Opens, keeps and closes. `apply` after every change of the services."""

    def __init__(self, departure: Departure, counters: Counters, log: Logger) -> None:
        self._departure = departure
        self._counters = counters
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._open: dict[Spot, TcpListener[Route] | UdpListener] = {}
        self._failed: dict[Spot, tuple[Wanted, str]] = {}
        self._refused: list[tuple[Spot, Wanted, str]] = []
        self._routes: dict[tuple[str, Port], Route] = {}
        self.applied = False  # services are known
        self._services: dict[str, Service] = {}
        self._traffic: Mapping[str, Traffic] = {}
        self._asked: dict[tuple[str, Port, Traffic | None], Route] = {}  # of `route`, where nobody listens
        self._retry: asyncio.TimerHandle | None = None
        self._delay = RETRY_FIRST

    def apply(self, services: Iterable[Service], traffic: Mapping[str, Traffic] | None = None) -> None:
        """These are all the services known now, and how their clients are spread, by the service's key."""
        services, self.applied = list(services), True
        spots, self._refused = plan.wanted(services, traffic)
        steps = plan.diff(self._open, spots)
        for spot in steps.close:
            self._open.pop(spot).close()
            self._log.info("no longer listening for %s", spot.network, extra={"address": str(spot)})
        routes = {}
        for want in spots.values():
            key = want.service, want.port
            if key not in routes:
                routes[key] = self._route(key, want)
        self._routes = routes
        self._services, self._traffic = {service.key: service for service in services}, traffic or {}
        for asked, route in list(self._asked.items()):
            service = self._services.get(asked[0])
            if service is None or asked[1] not in service.ports:
                del self._asked[asked]
            else:
                route.update(self._want(service, *asked[1:]))
        for spot, want in steps.keep.items():
            self._open[spot].route = routes[want.service, want.port]
        self._failed = {spot: entry for spot, entry in self._failed.items() if spot in steps.open}
        fresh = {spot: want for spot, want in steps.open.items() if spot not in self._failed}
        for spot, (_, error) in list(self._failed.items()):
            self._failed[spot] = steps.open[spot], error
        self._try(fresh)
        if fresh.keys() & self._failed.keys():
            self._rearm(RETRY_FIRST)

    def route(self, service: str, port: int, default: Traffic | None = None) -> Route | None:
        """The route to a TCP port of a service ("namespace/name"; port 0: its only one), listened on or not; None: there
        is no such port. `default`: how clients are spread where the service does not say; None: as everywhere."""
        known = self._services.get(service)
        found = [one for one in known.ports if one.network == "tcp" and port in (0, one.number)] if known else []
        if known is None or len(found) != 1:
            return None
        route = self._routes.get((service, found[0])) if default is None else None
        route = route or self._asked.get((service, found[0], default))
        if route is None:
            route = self._departure.route(self._want(known, found[0], default))
            self._asked[service, found[0], default] = route
        return route

    def _want(self, service: Service, port: Port, default: Traffic | None) -> Wanted:
        traffic = self._traffic if default is None else plan.traffic_of((service,), default)[0]
        return Wanted(service.key, port, service.backends(port), traffic.get(service.key, ROUND_ROBIN))

    def count(self) -> int:
        """Addresses listened on now."""
        return len(self._open)

    def rows(self) -> list[Row]:
        rows = [
            Row(spot, one.route.label, len(one.route), "", one.route.traffic.strategy, one.route.ejected)
            for spot, one in self._open.items()
        ]
        rows += [Row(spot, want.label, len(want.backends), error) for spot, (want, error) in self._failed.items()]
        rows += [Row(spot, want.label, len(want.backends), error) for spot, want, error in self._refused]
        return sorted(rows, key=lambda row: (row.label, row.spot))

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        while self._open:
            self._open.popitem()[1].close()

    def _route(self, key: tuple[str, Port], want: Wanted) -> Route:
        route = self._routes.get(key)
        if route is None:
            return self._departure.route(want)
        route.update(want)
        return route

    def _try(self, spots: dict[Spot, Wanted]) -> None:
        for spot, want in spots.items():
            route = self._routes[want.service, want.port]
            try:
                listener = (
                    TcpListener(spot, route, self._departure, self._log)
                    if spot.network == "tcp"
                    else UdpListener(spot, route, self._departure, self._counters.dropped, self._log)
                )
            except OSError as error:
                text = NOT_LOCAL if error.errno == errno.EADDRNOTAVAIL else f"cannot listen: {error.strerror}"
                if spot not in self._failed:
                    self._log.warning(
                        "not listening for %s",
                        spot.network,
                        extra={"address": str(spot), "target": want.label, "error": text},
                    )
                self._failed[spot] = want, text
                continue
            self._failed.pop(spot, None)
            self._open[spot] = listener
            self._log.info("listening for %s", spot.network, extra={"address": str(spot), "target": want.label})

    def _rearm(self, delay: float) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._delay = delay
        self._retry = self._loop.call_later(delay, self._again)

    def _again(self) -> None:
        self._retry = None
        self._try({spot: want for spot, (want, _) in self._failed.items()})
        if self._failed:
            self._rearm(min(self._delay * 2, RETRY_LAST))
