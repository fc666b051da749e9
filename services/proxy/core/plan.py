"""Which listeners should exist, and what that means for those that do."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from services.proxy.core.catalog import Backend, Port, Service, Spot
from services.proxy.core.traffic import ROUND_ROBIN, Traffic, TrafficError, parse


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a listener serves."""

    service: str  # "namespace/name"
    port: Port  # the service's port; listeners of one service port share one balancer
    backends: tuple[Backend, ...]
    traffic: Traffic = ROUND_ROBIN

    @property
    def label(self) -> str:
        """ "namespace/name:port", as people write it."""
        return f"{self.service}:{self.port.number}"


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


def wanted(
    services: Iterable[Service], traffic: Mapping[str, Traffic] | None = None
) -> tuple[dict[Spot, Wanted], list[tuple[Spot, Wanted, str]]]:
    """Every cluster IP × port of every service, and those that cannot be had, each with the reason.

    Two services that claim one spot: the first by name has it, so that all nodes agree.
    """
    spots: dict[Spot, Wanted] = {}
    refused: list[tuple[Spot, Wanted, str]] = []
    for service in sorted(services, key=lambda service: service.key):
        for port in service.ports:
            want = Wanted(service.key, port, service.backends(port), (traffic or {}).get(service.key, ROUND_ROBIN))
            for ip in service.cluster_ips:
                spot = Spot(port.network, ip, port.number)
                holder = spots.setdefault(spot, want)
                if holder is not want:
                    refused.append((spot, want, f"already served for {holder.label}; give one another clusterIP"))
    return spots, refused


def diff(existing: Collection[Spot], spots: Mapping[Spot, Wanted]) -> Plan:
    """Steps from `existing` to `spots`."""
    plan = Plan(close=[spot for spot in existing if spot not in spots])
    for spot, want in spots.items():
        (plan.keep if spot in existing else plan.open)[spot] = want
    return plan
