"""Which endpoints of a service are meant for the clients on this node: by the node, and by its zone.

As kube-proxy has it (KEP-2433, KEP-3015): hints in the EndpointSlices count whatever the Service says, but only where
every ready endpoint has one, and one of them names us. A cluster's EndpointSlice controller writes them. Slices without any,
as those that are written by hand, are read as if it had: each endpoint is for its own zone where spec.trafficDistribution
asks for zones, and for its own node where it asks for nodes. (`topology-mode: Auto` is for that controller alone: what it
shares out among zones is in its hints, and where it writes none it wants none.)

What is preferred here is chosen first, not alone: where those meant for us fail, others serve, which kube-proxy cannot see.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from services.proxy.core.catalog import Backend, Endpoint, Service

# Values of spec.trafficDistribution (Service reference); PreferClose is the former name of PreferSameZone, and PreferSameNode
# falls back to the zone.
_ZONAL = ("PreferClose", "PreferSameZone", "PreferSameNode")
_NODAL = ("PreferSameNode",)

Levels = tuple[tuple[Backend, ...], ...]  # who is preferred, the nearest first


def levels(ready: Sequence[tuple[Endpoint, Backend]], distribution: str, here: str, zone: str) -> Levels:
    """Of the ready endpoints for one port. `here`: this node, `zone`: its zone, "" where nobody knows."""
    endpoints = [endpoint for endpoint, _ in ready]
    if not any(endpoint.for_nodes or endpoint.for_zones for endpoint in endpoints):
        endpoints = [_hinted(endpoint, distribution) for endpoint in endpoints]
    backends = [backend for _, backend in ready]
    nodes = _meant([endpoint.for_nodes for endpoint in endpoints], backends, here)
    zones = _meant([endpoint.for_zones for endpoint in endpoints], backends, zone)
    return tuple(level for level in (nodes, zones) if level)


def zone_of(services: Iterable[Service], node: str) -> str:
    """The zone of a node that does not say: that of the endpoints on it; "" where there are none."""
    zones = {one.zone for service in services for one in service.endpoints if node and one.node == node}
    return min(zones - {""}, default="")


def wants_zones(service: Service) -> bool:
    """Whether it matters to this service in which zone a client is."""
    return any(one.for_zones or (one.zone and service.distribution in _ZONAL) for one in service.endpoints)


def _hinted(endpoint: Endpoint, distribution: str) -> Endpoint:
    return replace(
        endpoint,
        for_zones=(endpoint.zone,) if endpoint.zone and distribution in _ZONAL else (),
        for_nodes=(endpoint.node,) if endpoint.node and distribution in _NODAL else (),
    )


def _meant(hints: Sequence[tuple[str, ...]], backends: Sequence[Backend], us: str) -> tuple[Backend, ...]:
    """Whose hints name us; nobody where somebody has none."""
    if not us or not all(hints):
        return ()
    return tuple(backend for names, backend in zip(hints, backends, strict=True) if us in names)
