"""Services and their endpoints, in the shapes of Kubernetes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum


class Protocol(IntEnum):
    """Transport of a port; numbers as Protocol in protos/discovery.proto."""

    TCP = 1
    UDP = 2


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a service. `node_port` 0: none."""

    name: str
    protocol: Protocol
    port: int
    node_port: int = 0
    app_protocol: str = ""


@dataclass(frozen=True, slots=True)
class EndpointPort:
    """A port of a backend; `name` is that of the service port it stands for."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One backend. `node_name` empty: nobody said where it runs. `leaving`: it goes away, but answers still. `pod`: its
    name, "" when nobody said. `for_zones`, `for_nodes`: names in its hints."""

    addresses: tuple[str, ...]
    ports: tuple[EndpointPort, ...]
    node_name: str = ""
    ready: bool = True
    hostname: str = ""
    leaving: bool = False
    pod: str = ""
    zone: str = ""
    for_zones: tuple[str, ...] = ()
    for_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Service:
    """A Service with the endpoints of all its slices. Without cluster IPs, external IPs, node ports and external name: headless.
    `affinity_timeout` in seconds. `traffic_policy`: spec.trafficPolicy of its DestinationRule, as JSON."""

    namespace: str
    name: str
    cluster_ips: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    session_affinity: str = "None"
    affinity_timeout: float = 0.0
    external_ips: tuple[str, ...] = ()
    traffic_distribution: str = ""
    internal_traffic_policy: str = ""
    traffic_policy: str = ""
    external_traffic_policy: str = ""
    external_name: str = ""

    @property
    def key(self) -> str:
        """ "namespace/name"."""
        return f"{self.namespace}/{self.name}"
