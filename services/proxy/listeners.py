"""The listeners that exist, kept equal to those that services ask for."""

import asyncio
import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from logging import Logger

from services.proxy.core import plan
from services.proxy.core.catalog import Port, Service, Spot
from services.proxy.core.plan import Wanted
from services.proxy.core.traffic import Traffic
from services.proxy.counters import Counters
from services.proxy.departure import Departure, Route
from services.proxy.interception import Captured, Interception, InterceptionError
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
    intercepted: bool = False


class Listeners:
    """Opens, keeps and closes. `apply` after every change of the services."""

    def __init__(self, departure: Departure, interception: Interception, counters: Counters, log: Logger) -> None:
        self._departure = departure
        self._interception = interception
        self._counters = counters
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._open: dict[Spot, TcpListener | UdpListener | Captured] = {}
        self._failed: dict[Spot, tuple[Wanted, str]] = {}
        self._refused: list[tuple[Spot, Wanted, str]] = []
        self._routes: dict[tuple[str, Port], Route] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._delay = RETRY_FIRST

    def apply(self, services: Iterable[Service], traffic: Mapping[str, Traffic] | None = None) -> None:
        """These are all the services known now, and how their clients are spread, by the service's key."""
        services = list(services)
        self._interception.learn(services)
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
        for spot, want in steps.keep.items():
            self._open[spot].route = routes[want.service, want.port]
        self._failed = {spot: entry for spot, entry in self._failed.items() if spot in steps.open}
        fresh = {spot: want for spot, want in steps.open.items() if spot not in self._failed}
        for spot, (_, error) in list(self._failed.items()):
            self._failed[spot] = steps.open[spot], error
        self._try(fresh)
        if fresh.keys() & self._failed.keys():
            self._rearm(RETRY_FIRST)

    def count(self) -> int:
        """Addresses listened on now."""
        return len(self._open)

    def rows(self) -> list[Row]:
        rows = [
            Row(
                spot,
                one.route.label,
                len(one.route),
                one.error,
                one.route.traffic.strategy,
                one.route.ejected,
                one.intercepted,
            )
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
                listener = self._listener(spot, route)
            except (OSError, InterceptionError) as error:
                text = f"cannot listen: {error.strerror}" if isinstance(error, OSError) else f"{NOT_LOCAL}; {error}"
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

    def _listener(self, spot: Spot, route: Route) -> TcpListener | UdpListener | Captured:
        """Raises OSError, or InterceptionError where the address is not this host's."""
        try:
            if spot.network == "tcp":
                return TcpListener(spot, route, self._departure, self._log)
            return UdpListener(spot, route, self._departure, self._counters.dropped, self._log)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
        return self._interception.capture(spot, route)

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
