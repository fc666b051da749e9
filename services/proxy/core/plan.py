"""Which listeners should exist, and what that means for those that do.

A service is served at its clusterIPs and externalIPs, and with its nodePorts at every address of the node. A headless
one has no address; its endpoints on other nodes are served here under their own, each going to exactly that endpoint.
Whether an address can be had on this host turns out when somebody tries.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from services.proxy.core import topology
from services.proxy.core.catalog import Backend, Network, Port, Service, Spot, local_addresses
from services.proxy.core.topology import Levels
from services.proxy.core.traffic import ROUND_ROBIN, Traffic, TrafficError, parse

# EdgeMesh's label with which a service says that another proxy serves it; its value does not matter.
FILTER_LABEL = "service.edgemesh.kubeedge.io/service-proxy-name"

# EdgeMesh's modes of modules.edgeProxy.serviceFilterMode: which services are left out, those with FILTER_LABEL (its
# default) or those without.
FilterMode = Literal["FilterIfLabelExists", "FilterIfLabelDoesNotExists"]

Kind = Literal["clusterIP", "externalIP", "nodePort", "endpoint"]

# Addresses that every host has for itself: an endpoint that gives one of them cannot be told from this host's own.
_EVERYBODYS = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Site:
    """What listeners depend on beside the services."""

    node: str = ""
    addresses: tuple[str, ...] = ()  # that serve nodePorts; "0.0.0.0" and "::": all
    filter: FilterMode = "FilterIfLabelExists"
    zone: str = ""  # of the node; "": not known


class RouteKey(NamedTuple):
    """Listeners with equal keys share one balancer."""

    service: str
    port: Port
    local: bool  # only to backends on this node
    family: int  # of IP, whose backends are preferred; 0: neither
    only: Backend | None  # the one endpoint of a headless service that is meant


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a listener serves."""

    service: str  # "namespace/name"
    port: Port  # the service's port; listeners of one service port share one balancer
    backends: tuple[Backend, ...]
    traffic: Traffic = ROUND_ROBIN
    kind: Kind = "clusterIP"  # what its address is to the service
    family: int = 0  # of IP (4 or 6), whose backends are preferred; 0: neither
    levels: Levels = ()  # those of them to prefer

    @property
    def label(self) -> str:
        """ "namespace/name:port", as people write it."""
        return f"{self.service}:{self.port.number}"

    @property
    def key(self) -> RouteKey:
        only = self.backends[0] if self.kind == "endpoint" else None
        return RouteKey(self.service, self.port, self.traffic.local, self.family, only)


@dataclass(slots=True)
class Plan:
    """Steps from the listeners that exist to those that should. Close before you open: a port may change hands."""

    close: list[Spot] = field(default_factory=list)
    open: dict[Spot, Wanted] = field(default_factory=dict)
    keep: dict[Spot, Wanted] = field(default_factory=dict)


def traffic_of(services: Iterable[Service], default: Traffic) -> tuple[dict[str, Traffic], dict[str, str]]:
    """How each service's clients are spread, by its key, and what is wrong with what it asks for: such a service is
    served as if it had not asked."""
    traffic, problems = {}, {}
    for service in services:
        try:
            traffic[service.key] = parse(service, default)
        except TrafficError as error:
            traffic[service.key] = default
            problems[service.key] = str(error)
    return traffic, problems


def left_out(service: Service, mode: FilterMode) -> str:
    """Why this proxy has nothing to do with `service`; "" when it has."""
    if service.labelled and mode == "FilterIfLabelExists":
        return f"left out: it has the label {FILTER_LABEL}, and serviceFilterMode is {mode}"
    if not service.labelled and mode != "FilterIfLabelExists":
        return f"left out: it lacks the label {FILTER_LABEL}, and serviceFilterMode is {mode}"
    return ""


def served(services: Iterable[Service], mode: FilterMode) -> Iterator[Service]:
    """Those that are not left out."""
    return (service for service in services if not left_out(service, mode))


def wanted(
    services: Iterable[Service], traffic: Mapping[str, Traffic] | None = None, site: Site | None = None
) -> tuple[dict[Spot, Wanted], list[tuple[Spot, Wanted, str]]]:
    """Every address × port of every service, and those that cannot be had, each with the reason.

    Two services that claim one spot: a clusterIP comes before all else, then the first by name has it, so that all
    nodes agree.
    """
    traffic, site = traffic or {}, site or Site()
    ordered = sorted(services, key=lambda service: service.key)
    here = local_addresses(ordered, site.node)
    spots: dict[Spot, Wanted] = {}
    refused: list[tuple[Spot, Wanted, str]] = []
    claims = [claim for service in ordered for claim in _claims(service, traffic.get(service.key, ROUND_ROBIN), site)]
    reasons = {service.key: left_out(service, site.filter) for service in ordered}
    for spot, want in sorted(claims, key=lambda claim: claim[1].kind != "clusterIP"):
        why = reasons[want.service]
        if not why and want.kind == "endpoint":
            why = _unfit(spot, here)
        if not why:
            holder = spots.setdefault(spot, want)
            if holder is not want:
                why = f"already served for {holder.label}; give one another {_name(want.kind)}"
        if why:
            refused.append((spot, want, why))
    return spots, refused


def _claims(service: Service, traffic: Traffic, site: Site) -> Iterator[tuple[Spot, Wanted]]:
    for port in service.ports:
        if service.headless:
            yield from _endpoints(service, port, site.node)
            continue
        shapes: tuple[tuple[Kind, tuple[str, ...], int], ...] = (
            ("clusterIP", service.cluster_ips, port.number),
            ("externalIP", service.external_ips, port.number),
            ("nodePort", site.addresses if port.node_port else (), port.node_port),
        )
        for kind, ips, number in shapes:
            # The way in decides which of the service's two policies counts.
            policy = service.internal_policy if kind == "clusterIP" else service.external_policy
            own = replace(traffic.at(port.number), local=policy == "Local")
            for ip in ips:
                yield Spot(port.network, ip, number), want_of(service, port, own, site, ip, kind)


def want_of(
    service: Service, port: Port, traffic: Traffic, site: Site, ip: str = "", kind: Kind = "clusterIP"
) -> Wanted:
    """What is served at `ip`; "": for those who name the service. Of a backend with addresses of both families that of
    the address the client used is meant, as in a cluster; the others serve where there are no such."""
    serving = service.serving(port, site.node, local=traffic.local)
    family = _family(service, ip)
    serving = [one for one in serving if _version(one[1].ip) == family] or serving
    backends = tuple(backend for _, backend in serving)
    levels: Levels = ()
    if not traffic.local:  # as in kube-proxy, where Local asks for no more than the node
        ready = [one for one in serving if one[0].ready]
        levels = topology.levels(ready, service.distribution, site.node, site.zone)
    return Wanted(service.key, port, backends, traffic, kind, family, levels)


def _family(service: Service, ip: str) -> int:
    """That of the clusterIPs, if it is one; else that of `ip`."""
    families = {_version(one) for one in service.cluster_ips}
    if len(families) == 1:
        return families.pop()
    at = ip or next(iter(service.cluster_ips), "")
    return _version(at) if at else 0


def _version(ip: str) -> int:
    return 6 if ":" in ip else 4


def _endpoints(service: Service, port: Port, node: str) -> Iterator[tuple[Spot, Wanted]]:
    """Those on other nodes: an endpoint on this one is where it says itself."""
    for backend in service.backends(port, node):
        if backend.node != node:
            want = Wanted(service.key, port, (backend,), kind="endpoint")
            yield Spot(port.network, backend.ip, backend.port), want


def _unfit(spot: Spot, here: Mapping[tuple[Network, str, int], str]) -> str:
    """Why the address of an endpoint elsewhere cannot stand for it here."""
    if spot.ip in _EVERYBODYS:
        return "every host has this address: give the endpoints of a headless service addresses of their own"
    if (spot.network, spot.ip, spot.port) in here:
        return "an endpoint on this node has this address, too"
    return ""


def _name(kind: Kind) -> str:
    return "address" if kind == "endpoint" else kind


def diff(existing: Collection[Spot], spots: Mapping[Spot, Wanted]) -> Plan:
    """Steps from `existing` to `spots`."""
    plan = Plan(close=[spot for spot in existing if spot not in spots])
    for spot, want in spots.items():
        (plan.keep if spot in existing else plan.open)[spot] = want
    return plan
