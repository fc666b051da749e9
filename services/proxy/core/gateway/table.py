"""All objects together: what is served on which port, and where each request goes.

table = compile_table(objects)      # whenever they changed
entry = table.entries[443]          # what listens there
served = entry.find("a.example")    # by SNI, for TLS
answer = choose(served, request, chance)
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from services.proxy.core.gateway import objects, paths
from services.proxy.core.gateway.hosts import Hosts, host_of, overlap
from services.proxy.core.gateway.model import (
    Destination,
    HttpRoute,
    Match,
    Redirect,
    Server,
    Spread,
    StreamRoute,
    VirtualService,
)
from services.proxy.core.gateway.paths import Target
from services.proxy.core.gateway.spec import ObjectError

MAX_PORTS = 256  # that are listened on

Kind = Literal["http", "tls", "tcp"]
_KINDS: dict[str, Kind] = {
    "HTTP": "http",
    "HTTP2": "http",
    "GRPC": "http",
    "GRPC-WEB": "http",
    "HTTPS": "tls",
    "TLS": "tls",
    "TCP": "tcp",
}


class Object(NamedTuple):
    """As discovery hands it over."""

    kind: str
    namespace: str
    name: str
    body: str  # JSON

    @property
    def label(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"

    @property
    def key(self) -> str:
        """As discovery names it when it is gone."""
        return f"{self.kind}/{self.namespace}/{self.name}"


@dataclass(slots=True)
class Site:
    """A virtual host: its routes in order."""

    routes: list[HttpRoute] = field(default_factory=list)
    to_https: bool = False


@dataclass(slots=True)
class Streams:
    """Where connections go that nobody looks into."""

    label: str
    spread: Spread | None  # None: they are refused
    vague: bool = False


@dataclass(slots=True)
class Served:
    """What there is behind one SNI, or on a port without TLS. Streams are by SNI where TLS passes through."""

    server: Server
    sites: Hosts[Site] = field(default_factory=Hosts)
    streams: Hosts[Streams] = field(default_factory=Hosts)

    @property
    def passes(self) -> bool:
        """TLS is the backend's business."""
        return self.server.tls is not None and self.server.tls.mode == "PASSTHROUGH"

    @property
    def speaks_http(self) -> bool:
        return self.server.speaks_http and not self.passes


@dataclass(slots=True)
class Entry:
    """One port."""

    port: int
    kind: Kind
    served: Hosts[Served] = field(default_factory=Hosts)  # by SNI; "*" only, without TLS
    labels: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """As status shows it."""
        return ", ".join(self.labels)

    def find(self, sni: str) -> Served | None:
        return self.served.find(sni)

    def destinations(self) -> set[Destination]:
        """All that clients of this port may be sent to."""
        spreads = [one.spread for served in self.served for one in served.streams if one.spread is not None]
        routes = [route for served in self.served for site in served.sites for route in site.routes]
        spreads += [route.spread for route in routes if route.spread is not None]
        return {destination for spread in spreads for destination in spread.destinations}


@dataclass(slots=True)
class Table:
    """`problems` by the label of the object, with the path of the server or route where it is about one; those who cannot be
    served are not, the others are."""

    entries: dict[int, Entry] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    idle: dict[str, list[str]] = field(default_factory=dict)  # fields that have no effect, by the object's label
    destinations: dict[Destination, str] = field(default_factory=dict)  # with the label of one object that names it


def compile_table(found: Iterable[Object]) -> Table:
    """Everything that can be served. Where two objects claim one thing, the first by name has it."""
    table = Table()
    servers: list[Server] = []
    routes: list[VirtualService] = []
    found = sorted(found)
    for one in found:
        try:
            body = json.loads(one.body)
            if one.kind == "Gateway":
                parsed, problems = objects.gateway(one.namespace, one.name, body)
                for path, server in parsed.items():
                    try:
                        _check(table, server)
                        _open(table, server)
                        servers.append(server)
                    except ObjectError as error:
                        problems[path] = str(error)
            elif one.kind == "VirtualService":
                service, idle, problems = objects.virtual_service(one.namespace, one.name, body)
                routes.append(service)
                if idle:
                    table.idle[one.label] = idle
            else:
                continue
            table.problems |= {f"{one.label}, {path}": why for path, why in problems.items()}
        except (ObjectError, ValueError, RecursionError) as error:
            table.problems[one.label] = " ".join(str(error).split()) or "it is nested too deep"
    names = {f"{one.namespace}/{one.name}" for one in found if one.kind == "Gateway"}
    for service in routes:
        _bind(table, service, servers, names)
    return table


def _check(table: Table, server: Server) -> None:
    """Raises ObjectError when the port is somebody else's in another way."""
    entry = table.entries.get(server.port)
    if entry is None:
        if len(table.entries) >= MAX_PORTS:
            raise ObjectError(f"port {server.port}: {MAX_PORTS} ports are listened on, which is the limit")
        return
    if entry.kind != _KINDS[server.protocol]:
        raise ObjectError(f"port {server.port} is not {server.protocol} in {entry.labels[0]}; choose another one")
    if entry.kind == "tls":
        for _, host in server.hosts:
            holder = entry.served.get(host)
            if holder is not None and holder.server.gateway != server.gateway:
                raise ObjectError(f"port {server.port} host {host} is served by {holder.server.label} already")


def _open(table: Table, server: Server) -> None:
    entry = table.entries.setdefault(server.port, Entry(server.port, _KINDS[server.protocol]))
    if server.label not in entry.labels:
        entry.labels.append(server.label)
    served = Served(server)
    for _, host in server.hosts:
        found = entry.served.setdefault(host if entry.kind == "tls" else "*", served)
        if server.to_https and entry.kind == "http":
            found.sites.setdefault(host, Site()).to_https = True


def _bind(table: Table, service: VirtualService, servers: list[Server], names: set[str]) -> None:
    """Adds the routes of a virtual service to every server of its gateways that has a host in common with it. `names`: of
    all gateways, served or not."""
    label = f"VirtualService {service.key}"
    if not service.gateways:
        table.idle.setdefault(label, []).append("spec.gateways names no Gateway: it")
        return
    bound = False
    for server in servers:
        if server.gateway not in service.gateways:
            continue
        entry = table.entries[server.port]
        for namespace, host in server.hosts:
            served = entry.served.get(host if entry.kind == "tls" else "*")
            if namespace not in ("*", service.namespace) or served is None:
                continue
            common = [both for own in service.hosts if (both := overlap(own, host)) is not None]
            bound = bound or bool(common)
            _add(entry, served, service, common, server.gateway)
    if not bound:
        missing = [name for name in service.gateways if name not in names]
        why = (
            f"there is no Gateway {missing[0]}" if missing else "no server of its gateways has a host of its spec.hosts"
        )
        table.problems[label] = why
    for spread in _spreads(service):
        for destination in spread.destinations:
            table.destinations.setdefault(destination, label)


def _add(entry: Entry, served: Served, service: VirtualService, hosts: list[str], gateway: str) -> None:
    for host in hosts:
        if served.speaks_http and service.http:
            site = served.sites.setdefault(host, Site())
            here = [route for one in service.http if (route := one.at(gateway)) is not None]
            site.routes += [route for route in here if route not in site.routes]
        elif not served.speaks_http:
            for stream in service.tls if served.passes else service.tcp:
                for match in stream.matches:
                    if match.holds(entry.port, gateway):
                        _stream(served, stream, [both for sni in match.sni if (both := overlap(sni, host))])


def _stream(served: Served, route: StreamRoute, hosts: list[str]) -> None:
    streams = Streams(route.label, route.spread, route.vague)
    for host in hosts if served.passes else ["*"]:
        held = served.streams.setdefault(host, streams)
        if held.vague and _owner(held.label) != _owner(route.label):
            served.streams.put(host, streams)


def _spreads(service: VirtualService) -> Iterator[Spread]:
    for http in service.http:
        if http.spread is not None:
            yield http.spread
    for stream in (*service.tls, *service.tcp):
        if stream.spread is not None:
            yield stream.spread


# ── requests ──


@dataclass(frozen=True, slots=True)
class Request:
    """What a route may ask about. `headers` by lower-case name, several values joined by commas."""

    method: str
    target: Target
    authority: str  # Host, or the target's own
    scheme: str
    port: int  # of the gateway
    headers: Callable[[], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Forward:
    """Send it there. `timeout` s until the whole answer is there; 0: none."""

    label: str
    destination: Destination
    target: str
    authority: str  # "": as the client wrote it
    timeout: float


@dataclass(frozen=True, slots=True)
class Moved:
    """Answer by a redirect."""

    label: str
    code: int
    location: str


@dataclass(frozen=True, slots=True)
class Answered:
    """Answer so."""

    label: str
    status: int
    body: bytes


def choose(served: Served, request: Request, chance: float) -> Forward | Moved | Answered | None:
    """Where a request goes; None: no route has it. `chance` in [0, 1), evenly drawn, decides between weights."""
    site = served.sites.find(host_of(request.authority))
    if site is None:
        return None
    if site.to_https:
        to = Redirect(301, "https")
        return Moved(served.server.label, 301, paths.location(to, request.target, request.scheme, request.authority))
    vague: dict[str, str] = {}  # labels of routes that may be meant, by their virtual service
    for route in site.routes:
        owner = _owner(route.label)
        if owner in vague:
            continue
        match = next((match for match in route.matches if _matches(match, request)), None)
        if match is None:
            continue
        if route.redirect is not None:
            where = paths.location(route.redirect, request.target, request.scheme, request.authority)
            return Moved(route.label, route.redirect.code, where)
        if route.direct is not None:
            return Answered(route.label, route.direct.status, route.direct.body)
        if route.vague:
            vague[owner] = route.label
            continue
        if route.spread is None:
            return _unserved(route.label)
        target = paths.rewrite(route, match, request.target)
        return Forward(route.label, route.spread.pick(chance), target, route.rewrite_authority, route.timeout)
    return _unserved(next(iter(vague.values()))) if vague else None


def _owner(label: str) -> str:
    """The virtual service of a route."""
    return label.partition(":")[0]


def _unserved(label: str) -> Answered:
    """Why, only status says: clients are strangers."""
    return Answered(label, 503, b"this route is not served\n")


def _matches(match: Match, request: Request) -> bool:
    if match.uri is not None and not match.uri.matches(request.target.path):
        return False
    if match.port and match.port != request.port:
        return False
    if match.method is not None and not match.method.matches(request.method):
        return False
    if match.authority is not None and not match.authority.matches(request.authority.lower()):
        return False
    if match.scheme is not None and not match.scheme.matches(request.scheme):
        return False
    if match.headers or match.without:
        headers = request.headers()
        if not all(text.matches(headers.get(name)) for name, text in match.headers):
            return False
        if any(text.matches(headers.get(name)) for name, text in match.without):
            return False
    if match.query:
        parameters = request.target.parameters()
        return all(text.matches(parameters.get(name)) for name, text in match.query)
    return True
