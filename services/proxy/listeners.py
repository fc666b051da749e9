"""The listeners that exist, kept equal to those that services ask for."""

import asyncio
import errno
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from logging import Logger

from services.proxy.core import plan
from services.proxy.core.catalog import Backend, Network, Port, Service, Spot
from services.proxy.core.plan import RouteKey, Site, Wanted
from services.proxy.core.traffic import ROUND_ROBIN, Traffic
from services.proxy.counters import Counters
from services.proxy.departure import Departure
from services.proxy.interception import Captured, Interception, InterceptionError
from services.proxy.route import Route
from services.proxy.tcp import TcpListener
from services.proxy.udp import UdpListener

RETRY_FIRST = 1.0  # s until an address that could not be had is tried again; doubles up to RETRY_LAST
RETRY_LAST = 60.0

NOT_LOCAL = "not a local address: give this host the address, or choose a clusterIP in 127.0.0.0/8"
ELSEWHERE = "not an address of this host"  # as most externalIPs and most endpoints of headless services are


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
    preferred: int = 0


class Listeners:
    """Opens, keeps and closes. `apply` after every change of the services."""

    def __init__(self, departure: Departure, interception: Interception, counters: Counters, log: Logger) -> None:
        self._departure = departure
        self._interception = interception
        self._counters = counters
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._open: dict[Spot, TcpListener[Route] | UdpListener | Captured] = {}
        self._failed: dict[Spot, tuple[Wanted, str]] = {}
        self._refused: list[tuple[Spot, Wanted, str]] = []
        self.applied = False  # services are known
        self._routes: dict[RouteKey, Route] = {}
        self._site = Site()
        self._services: dict[str, Service] = {}
        self._left_out: dict[str, str] = {}  # why, by key
        self._traffic: Mapping[str, Traffic] = {}
        self._asked: dict[tuple[str, Port, Traffic | None], Route] = {}  # of `route`, where nobody listens
        self._retry: asyncio.TimerHandle | None = None
        self._delay = RETRY_FIRST

    def apply(
        self, services: Iterable[Service], traffic: Mapping[str, Traffic] | None = None, site: Site | None = None
    ) -> None:
        """These are all the services known now, and how their clients are spread, by the service's key."""
        services, self.applied, self._site = list(services), True, site or Site()
        self._interception.learn(services)
        spots, self._refused = plan.wanted(services, traffic, self._site)
        steps = plan.diff(self._open, spots)
        for spot in steps.close:
            self._open.pop(spot).close()
            self._log.info("no longer listening for %s", spot.network, extra={"address": str(spot)})
        routes = {}
        for want in spots.values():
            key = want.key
            if key not in routes:
                routes[key] = self._route(key, want)
        self._routes = routes
        self._left_out = {one.key: why for one in services if (why := plan.left_out(one, self._site.filter))}
        self._services = {one.key: one for one in services if one.key not in self._left_out}
        self._traffic = traffic or {}
        for (name, port, default), route in list(self._asked.items()):
            service = self._services.get(name)
            if service is None or port not in service.ports:
                del self._asked[name, port, default]
            else:
                route.update(self._want(service, port, default))
        for spot, want in steps.keep.items():
            self._open[spot].route = routes[want.key]
        self._failed = {spot: entry for spot, entry in self._failed.items() if spot in steps.open}
        fresh = {spot: want for spot, want in steps.open.items() if spot not in self._failed}
        for spot, (_, error) in list(self._failed.items()):
            self._failed[spot] = steps.open[spot], error
        self._try(fresh)
        if fresh.keys() & self._failed.keys():
            self._rearm(RETRY_FIRST)

    def route(self, service: str, port: int, network: Network = "tcp", default: Traffic | None = None) -> Route | None:
        """The route to a port of a service ("namespace/name"; port 0: its only one), listened on or not; None: there is no
        such port. `default`: how clients are spread where the service does not say; None: as everywhere."""
        known = self._services.get(service)
        found = [one for one in known.ports if one.network == network and port in (0, one.number)] if known else []
        if known is None or len(found) != 1:
            return None
        want = self._want(known, found[0], default)
        route = self._routes.get(want.key) if default is None else None
        route = route or self._asked.get((service, found[0], default))
        if route is None:
            route = self._asked[service, found[0], default] = self._departure.route(want)
        return route

    def _want(self, service: Service, port: Port, default: Traffic | None) -> Wanted:
        traffic = self._traffic if default is None else plan.traffic_of((service,), default)[0]
        own = traffic.get(service.key, ROUND_ROBIN).at(port.number)
        return plan.want_of(service, port, own, self._site)

    def left_out(self, service: str) -> str:
        """Why this proxy has nothing to do with that service; "" when it has, or knows none of that name."""
        return self._left_out.get(service, "")

    def loops(self, network: Network, ip: str, port: int) -> bool:
        """Whether a connection to ip:port would come back here, and be sent to ip:port again. (What is intercepted, the
        interception knows.)"""
        for at in (ip, "::" if ":" in ip else "0.0.0.0"):
            one = self._open.get(Spot(network, at, port))
            if one is None or isinstance(one, Captured):
                continue
            if Backend(self._site.node, ip, port) in one.route.balancer.backends:
                return True
        return False

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
                str(one.route.balancer.traffic),
                one.route.ejected,
                one.intercepted,
                one.route.preferred,
            )
            for spot, one in self._open.items()
        ]
        rows += [Row(spot, want.label, len(want.backends), error) for spot, (want, error) in self._failed.items()]
        rows += [Row(spot, want.label, len(want.backends), error) for spot, want, error in self._refused]
        return sorted(rows, key=lambda row: (row.label, row.spot))

    def warnings(self) -> list[str]:
        """What clients get that is not what their service's author asked for."""
        return [
            f"{route.label} is spread by {route.balancer.traffic}, but {route.unasked} clients were by their address:"
            " they spoke no HTTP, or HTTP/2 and sent no request within seconds"
            for route in self._routes.values()
            if route.unasked
        ]

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        while self._open:
            self._open.popitem()[1].close()

    def _route(self, key: RouteKey, want: Wanted) -> Route:
        route = self._routes.get(key)
        if route is None:
            return self._departure.route(want)
        route.update(want)
        return route

    def _try(self, spots: dict[Spot, Wanted]) -> None:
        for spot, want in spots.items():
            route = self._routes[want.key]
            try:
                listener = self._listener(spot, route)
            except (OSError, InterceptionError) as error:
                text, level = f"cannot listen: {getattr(error, 'strerror', error)}", logging.WARNING
                if isinstance(error, InterceptionError):
                    usual = want.kind in ("externalIP", "endpoint")
                    text, level = (ELSEWHERE, logging.DEBUG) if usual else (f"{NOT_LOCAL}; {error}", level)
                if spot not in self._failed:
                    self._log.log(
                        level,
                        "not listening for %s",
                        spot.network,
                        extra={"address": str(spot), "target": want.label, "error": text},
                    )
                self._failed[spot] = want, text
                continue
            self._failed.pop(spot, None)
            self._open[spot] = listener
            self._log.info("listening for %s", spot.network, extra={"address": str(spot), "target": want.label})

    def _listener(self, spot: Spot, route: Route) -> TcpListener[Route] | UdpListener | Captured:
        """Raises OSError, or InterceptionError where the address is not this host's."""
        try:
            if spot.network == "tcp":
                return TcpListener(spot, route, self._departure, self._log, lambda: self._departure.crowded)
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
