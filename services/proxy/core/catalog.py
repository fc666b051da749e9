"""Services and endpoints as the proxy sees them, and the snapshot-then-deltas state that holds them.

The shapes are Kubernetes' own, cut down to what the proxy reads. Every address is an IP literal in canonical form.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from services.proxy.core.snapshot import Snapshot

Network = Literal["tcp", "udp"]


class Spot(NamedTuple):
    """Where a service is served: one transport on one address of this node."""

    network: Network
    ip: str
    port: int  # 1 to 65535

    def __str__(self) -> str:
        return join(self.ip, self.port)


class Backend(NamedTuple):
    """One place to send a client to."""

    node: str
    ip: str
    port: int

    @property
    def address(self) -> str:
        return join(self.ip, self.port)


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a service, or of an endpoint: they belong together by name."""

    name: str  # "" where there is only one
    network: Network
    number: int
    node_port: int = 0  # of a service's port: where every node serves it; 0: nowhere
    app: str = ""  # appProtocol of a service's port


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A backend address with its ports; `node` is "" when nobody knows where it runs. `leaving`: it goes away, but answers
    still. For whom it is: see core/topology.py."""

    addresses: tuple[str, ...]
    ports: tuple[Port, ...]
    node: str
    ready: bool
    hostname: str = ""  # its own name below a headless service's
    leaving: bool = False
    pod: str = ""
    zone: str = ""  # it is in; "" when nobody said
    for_zones: tuple[str, ...] = ()  # hints.forZones
    for_nodes: tuple[str, ...] = ()  # hints.forNodes


@dataclass(frozen=True, slots=True)
class Service:
    """A service with the endpoints of all its slices. `key` is "namespace/name"."""

    key: str
    cluster_ips: tuple[str, ...]
    ports: tuple[Port, ...]
    endpoints: tuple[Endpoint, ...]
    sticky: float = 0.0  # s of spec.sessionAffinity ClientIP; 0: None
    distribution: str = ""  # spec.trafficDistribution
    internal_policy: str = ""  # spec.internalTrafficPolicy
    annotations: Mapping[str, str] = field(default_factory=dict)  # ours, without PREFIX, see core/traffic.py
    traffic_policy: str = ""  # of its DestinationRule, JSON
    external_ips: tuple[str, ...] = ()
    external_policy: str = ""  # spec.externalTrafficPolicy, of external_ips and node ports
    external_name: str = ""  # which this service is another name for: it has no addresses and no endpoints
    labelled: bool = False  # has FILTER_LABEL, see core/plan.py

    @property
    def headless(self) -> bool:
        """It has no address of its own: clients talk to its endpoints by theirs."""
        own = self.cluster_ips or self.external_ips or any(port.node_port for port in self.ports)
        return not own and not self.external_name

    def backends(self, port: Port, here: str = "", *, local: bool = False) -> tuple[Backend, ...]:
        """See `serving`."""
        return tuple(backend for _, backend in self.serving(port, here, local=local))

    def serving(self, port: Port, here: str = "", *, local: bool = False) -> list[tuple[Endpoint, Backend]]:
        """Endpoints that can serve `port` now: the ready ones, where there is none those that go away but answer still (as
        kube-proxy has it, KEP-1669). In the order of the endpoints. `here`: the node that asks; it dials those itself of
        which nobody knows the node. `local`: only those on it."""
        found = [
            (endpoint, Backend(endpoint.node or here, endpoint.addresses[0], own.number))
            for endpoint in self.endpoints
            if (endpoint.ready or endpoint.leaving) and (endpoint.node or here) and endpoint.addresses
            if not local or endpoint.node == here
            for own in endpoint.ports
            if own.name == port.name and own.network == port.network
        ]
        return [one for one in found if one[0].ready] or found


class Catalog(Snapshot[Service]):
    """The services known now, by their keys."""

    def __init__(self) -> None:
        super().__init__(lambda service: service.key)


def local_addresses(services: Iterable[Service], node: str) -> dict[tuple[Network, str, int], str]:
    """Every endpoint address and port that lives on `node`, with (one of) the services it belongs to. Headless
    services and endpoints that are not ready count too, since they are as much this node's own."""
    return {
        (port.network, address, port.number): service.key
        for service in services
        for endpoint in service.endpoints
        if endpoint.node == node
        for address in endpoint.addresses
        for port in endpoint.ports
    }


def local_pods(services: Iterable[Service], node: str) -> dict[str, str]:
    """Names of the pods on `node` by their address, the first of each. A name that pods of several namespaces have means
    none of them."""
    owners: dict[str, set[str]] = {}
    ips: dict[str, str] = {}
    for service in services:
        for endpoint in service.endpoints:
            if endpoint.node == node and endpoint.pod and endpoint.addresses:
                owners.setdefault(endpoint.pod, set()).add(service.key.partition("/")[0])
                ips.setdefault(endpoint.addresses[0], endpoint.pod)
    return {ip: pod for ip, pod in ips.items() if len(owners[pod]) == 1}


def join(ip: str, port: int) -> str:
    """ "ip:port", with brackets around IPv6."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
