"""Service, EndpointSlice, Endpoints and DestinationRule documents → services.

The documents are what a YAML or JSON parser yields. An object that is wrong is left out, as a cluster would refuse it,
and never keeps out the others. Warnings do not refuse anything: they name what will not work as the author may expect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from . import destinationrule
from .destinationrule import Rule
from .fields import FieldError, Fields
from .service import Endpoint, EndpointPort, Protocol, Service, ServicePort

# Kubernetes' default for spec.sessionAffinityConfig.clientIP.timeoutSeconds (ServiceSpec reference), seconds.
AFFINITY_TIMEOUT = 10_800.0
# The label by which a slice names its service (EndpointSlice documentation).
SERVICE_LABEL = "kubernetes.io/service-name"

# Values of spec.trafficDistribution (Service reference, 1.33).
DISTRIBUTIONS = ("PreferClose", "PreferSameZone", "PreferSameNode")
# Those of spec.internalTrafficPolicy and spec.externalTrafficPolicy; the first where nothing is said.
POLICIES = ("Cluster", "Local")

_KINDS = ("Service", "EndpointSlice", "Endpoints", "DestinationRule", "List")
_VERSIONS = {
    "Service": ("v1",),
    "Endpoints": ("v1",),
    "EndpointSlice": ("discovery.k8s.io/v1", "discovery.k8s.io/v1beta1"),
    "DestinationRule": ("networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"),
}
_LISTS = {"List": "", "ServiceList": "Service", "EndpointSliceList": "EndpointSlice", "EndpointsList": "Endpoints"}


@dataclass(slots=True)
class Parsed:
    """Services by "namespace/name", and what was wrong, one line each with the document's number (from 1). `errors`: of
    each object that is left out. `spoilt`: the services among them: who knows an earlier state of them may keep it."""

    services: dict[str, Service] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    spoilt: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Backends:
    slices: list[Endpoint] = field(default_factory=list)
    legacy: list[Endpoint] = field(default_factory=list)
    where: str = ""
    has_slices: bool = False


def parse(documents: Iterable[object]) -> Parsed:
    """All services of some documents; empty documents and other kinds (Deployment, …) are passed over."""
    parsed = Parsed()
    backends: dict[str, _Backends] = {}
    rules: dict[str, Rule] = {}
    publishing: set[str] = set()
    for index, document in enumerate(documents, start=1):
        for where, item in _items(document, f"document {index}", parsed):
            try:
                _take(where, item, parsed, backends, rules, publishing)
            except FieldError as error:
                parsed.errors.append(f"{where}: {error}")
                parsed.spoilt |= _spoilt(item.values)
    for key, found in backends.items():
        service = parsed.services.get(key)
        if service is None and key in parsed.spoilt:
            continue
        if service is None:
            parsed.warnings.append(f"{found.where}: there is no Service {key} in this file; its endpoints are not used")
            continue
        # A cluster mirrors legacy Endpoints into slices; where both are, the slices are the newer truth.
        endpoints = _merge(found.slices if found.has_slices else found.legacy)
        if key in publishing:
            endpoints = tuple(replace(endpoint, ready=True) for endpoint in endpoints)
        parsed.services[key] = replace(service, endpoints=endpoints)
        parsed.warnings += (*_unserved(service, endpoints), *_zoneless(service, endpoints))
    strays = [key for key, one in parsed.services.items() if not all(it.node_name for it in one.endpoints)]
    if strays:
        names = ", ".join(strays[:3]) + (", …" if len(strays) > 3 else "")
        parsed.warnings.append(
            f"Service {names}: some endpoints have no nodeName; each node dials them itself, as kube-proxy does, and"
            " reaches them only where its network does"
        )
    for key, rule in rules.items():
        service = parsed.services.get(key)
        if service is not None:
            parsed.services[key] = replace(service, traffic_policy=rule.policy)
            parsed.warnings += [f"{rule.where}: {idle}" for idle in rule.idle]
        elif key not in parsed.spoilt:
            parsed.warnings.append(f"{rule.where}: there is no Service {key} in this file")
    return parsed


def _spoilt(document: dict[Any, Any]) -> set[str]:
    """The key of a Service that is wrong, as far as it can be read."""
    metadata = document.get("metadata")
    if document.get("kind") != "Service" or not isinstance(metadata, dict):
        return set()
    return {f"{metadata.get('namespace') or 'default'}/{metadata.get('name')}"}


def _items(document: object, where: str, parsed: Parsed) -> Iterator[tuple[str, Fields]]:
    """The objects of a document, lists unfolded."""
    if document is None:
        return
    if not isinstance(document, dict):
        parsed.errors.append(f"{where}: found {type(document).__name__}, expected an object with apiVersion and kind")
        return
    kind = document.get("kind")
    if kind in _LISTS:
        items = document.get("items")
        if not isinstance(items, list):
            parsed.errors.append(f"{where} ({kind}): items is not a list")
            return
        for index, item in enumerate(items, start=1):
            if isinstance(item, dict) and _LISTS[kind]:
                item = {"apiVersion": document.get("apiVersion"), "kind": _LISTS[kind], **item}
            yield from _items(item, f"{where}, item {index}", parsed)
        return
    yield _label(where, document), Fields(document)


def _label(where: str, document: dict[Any, Any]) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{where} ({document.get('kind') or 'no kind'} {name or 'without a name'})"


def _take(
    where: str,
    item: Fields,
    parsed: Parsed,
    backends: dict[str, _Backends],
    rules: dict[str, Rule],
    publishing: set[str],
) -> None:
    """`publishing`: the services with publishNotReadyAddresses."""
    kind = item.text("kind", required=True)
    if kind not in _VERSIONS:
        meant = difflib.get_close_matches(kind, _KINDS, n=1, cutoff=0.8)
        if meant:
            raise FieldError(f"kind is {kind!r}; did you mean {meant[0]}?")
        return
    version = item.text("apiVersion", required=True)
    if version not in _VERSIONS[kind]:
        raise FieldError(f"apiVersion is {version!r}, expected {_VERSIONS[kind][0]}")
    metadata = item.section("metadata", required=True)
    namespace = metadata.text("namespace") or "default"
    name = metadata.name("name")
    if kind == "Service":
        spec = item.section("spec", required=True)
        service = _service(namespace, name, metadata, spec, where, parsed)
        if service.key in parsed.services:
            raise FieldError(f"Service {service.key} is defined twice; the first is used")
        parsed.services[service.key] = service
        if spec.flag("publishNotReadyAddresses", default=False):
            publishing.add(service.key)
        return
    if kind == "DestinationRule":
        rule = destinationrule.read(where, namespace, item.section("spec", required=True))
        if rule.service in rules:
            raise FieldError(f"{rules[rule.service].where} is for {rule.service}, too; the first is used")
        rules[rule.service] = rule
        return
    if kind == "EndpointSlice":
        owner = metadata.texts("labels").get(SERVICE_LABEL, "")
        if not owner:
            raise FieldError(f"metadata.labels has no {SERVICE_LABEL}: name the Service that these endpoints belong to")
    else:
        owner = name
    endpoints = list((_slice if kind == "EndpointSlice" else _endpoints)(item, where, parsed))
    found = backends.setdefault(f"{namespace}/{owner}", _Backends(where=where))
    if kind == "EndpointSlice":
        found.has_slices = True
        found.slices += endpoints
    else:
        found.legacy += endpoints


def _service(namespace: str, name: str, metadata: Fields, spec: Fields, where: str, parsed: Parsed) -> Service:
    kind = spec.text("type") or "ClusterIP"
    if kind == "ExternalName":
        labels, annotations = metadata.texts("labels"), metadata.texts("annotations")
        return Service(namespace, name, labels=labels, annotations=annotations, external_name=spec.host("externalName"))
    config = spec.section("sessionAffinityConfig").section("clientIP")
    affinity = spec.choice("sessionAffinity", ("None", "ClientIP"))
    ports, external_ips = tuple(_service_ports(spec, where, parsed)), tuple(spec.ips("externalIPs"))
    if _headless(spec):
        if external_ips or any(port.node_port for port in ports):
            parsed.warnings.append(f"{where}: clusterIP is None, so its nodePorts and externalIPs are not used")
        ports, external_ips = tuple(replace(port, node_port=0) for port in ports), ()
    elif kind == "NodePort" and not all(port.node_port for port in ports):
        parsed.warnings.append(f"{where}: type is NodePort, but not every port has a nodePort; nobody assigns one here")
    return Service(
        namespace=namespace,
        name=name,
        cluster_ips=_cluster_ips(spec, optional=bool(external_ips) or any(port.node_port for port in ports)),
        ports=ports,
        labels=metadata.texts("labels"),
        annotations=metadata.texts("annotations"),
        session_affinity=affinity,
        affinity_timeout=float(config.number("timeoutSeconds", 1, 86_400) or AFFINITY_TIMEOUT)
        if affinity == "ClientIP"
        else 0.0,
        external_ips=external_ips,
        traffic_distribution=spec.text("trafficDistribution"),
        internal_traffic_policy=spec.choice("internalTrafficPolicy", POLICIES),
        external_traffic_policy=spec.choice("externalTrafficPolicy", POLICIES),
    )


def _headless(spec: Fields) -> bool:
    return spec.text("clusterIP") == "None" or spec.strings("clusterIPs") == ["None"]


def _cluster_ips(spec: Fields, *, optional: bool) -> tuple[str, ...]:
    """spec.clusterIP first, then spec.clusterIPs. A missing one is an error where the service has no other address:
    only a cluster could assign it."""
    if _headless(spec):
        return ()
    ips = dict.fromkeys([*spec.ips("clusterIP"), *spec.ips("clusterIPs")])
    if not ips and not optional:
        raise FieldError(
            "spec.clusterIP is missing; expected an IP address (standalone: one in 127.0.0.0/8), "
            'or "None" for a headless service'
        )
    return tuple(ips)


def _service_ports(spec: Fields, where: str, parsed: Parsed) -> Iterator[ServicePort]:
    ports = spec.sections("ports")
    names: set[str] = set()
    for port in ports:
        protocol = _protocol(port, where, parsed)
        name = port.text("name")
        if len(ports) > 1 and not name:
            raise FieldError(f"{port.path}.name is missing; with several ports each needs a name")
        if name in names:
            raise FieldError(f"{port.path}.name {name!r} is used twice")
        names.add(name)
        number = port.number("port", 1, 65_535, required=True)
        if protocol is not None:
            node_port = port.number("nodePort", 0, 65_535)
            yield ServicePort(name, protocol, number, node_port, port.text("appProtocol"))


def _protocol(port: Fields, where: str, parsed: Parsed) -> Protocol | None:
    name = port.choice("protocol", ("TCP", "UDP", "SCTP"))
    if name == "SCTP":
        parsed.warnings.append(f"{where}: {port.path} is SCTP, which is not carried; expected TCP or UDP")
        return None
    return Protocol[name]


def _slice(item: Fields, where: str, parsed: Parsed) -> Iterator[Endpoint]:
    kind = item.text("addressType", required=True)
    if kind not in ("IPv4", "IPv6"):
        parsed.warnings.append(f"{where}: addressType {kind} is not used; expected IPv4 or IPv6")
        return
    ports = tuple(_endpoint_ports(item.sections("ports"), where, parsed))
    for endpoint in item.sections("endpoints"):
        conditions = endpoint.section("conditions")
        ready = conditions.flag("ready", default=True)
        serving = conditions.flag("serving", default=ready)
        yield Endpoint(
            addresses=tuple(endpoint.ips("addresses", required=True)),
            ports=ports,
            node_name=endpoint.text("nodeName"),
            ready=ready,
            hostname=endpoint.text("hostname"),
            leaving=serving and conditions.flag("terminating", default=False),
            pod=_pod(endpoint),
            zone=endpoint.text("zone"),
            for_zones=_hints(endpoint, "forZones"),
            for_nodes=_hints(endpoint, "forNodes"),
        )


def _endpoints(item: Fields, where: str, parsed: Parsed) -> Iterator[Endpoint]:
    for subset in item.sections("subsets"):
        ports = tuple(_endpoint_ports(subset.sections("ports"), where, parsed))
        for key, ready in (("addresses", True), ("notReadyAddresses", False)):
            for address in subset.sections(key):
                yield Endpoint(
                    addresses=tuple(address.ips("ip", required=True)),
                    ports=ports,
                    node_name=address.text("nodeName"),
                    ready=ready,
                    hostname=address.text("hostname"),
                    pod=_pod(address),
                )


def _hints(endpoint: Fields, key: str) -> tuple[str, ...]:
    return tuple(hint.text("name", required=True) for hint in endpoint.section("hints").sections(key))


def _pod(endpoint: Fields) -> str:
    target = endpoint.section("targetRef")
    return target.text("name") if target.text("kind") == "Pod" else ""


def _endpoint_ports(ports: list[Fields], where: str, parsed: Parsed) -> Iterator[EndpointPort]:
    for port in ports:
        protocol = _protocol(port, where, parsed)
        number = port.number("port", 1, 65_535)
        if not number:  # "not restricted" (EndpointPort reference), so there is none to go to, for kube-proxy neither
            parsed.warnings.append(f"{where}: {port.path} has no number and is not used")
        elif protocol is not None:
            yield EndpointPort(port.text("name"), protocol, number)


def _merge(endpoints: list[Endpoint]) -> tuple[Endpoint, ...]:
    """One entry per backend: slices may name a backend twice, once for each set of ports or while they change."""
    merged: dict[tuple[tuple[str, ...], str], Endpoint] = {}
    for endpoint in endpoints:
        key = (endpoint.addresses, endpoint.node_name)
        known = merged.get(key)
        if known is not None:
            endpoint = replace(
                known,
                ports=tuple(dict.fromkeys((*known.ports, *endpoint.ports))),
                ready=known.ready or endpoint.ready,
                hostname=known.hostname or endpoint.hostname,
                leaving=known.leaving or endpoint.leaving,
                pod=known.pod or endpoint.pod,
                zone=known.zone or endpoint.zone,
                for_zones=tuple(dict.fromkeys((*known.for_zones, *endpoint.for_zones))),
                for_nodes=tuple(dict.fromkeys((*known.for_nodes, *endpoint.for_nodes))),
            )
        merged[key] = endpoint
    return tuple(merged.values())


def _zoneless(service: Service, endpoints: tuple[Endpoint, ...]) -> Iterator[str]:
    """What of spec.trafficDistribution comes to nothing: a value that is none, or endpoints of which some lack a zone."""
    wanted = service.traffic_distribution
    if not wanted:
        return
    if wanted not in DISTRIBUTIONS:
        yield f"Service {service.key}: trafficDistribution is {wanted!r}, expected {', '.join(DISTRIBUTIONS)}"
        return
    ready = [one for one in endpoints if one.ready]
    hinted = any(one.for_zones or one.for_nodes for one in ready)
    without = sum(not (one.for_zones or one.for_nodes if hinted else one.zone) for one in ready)
    if 0 < without < len(ready):
        yield (
            f"Service {service.key}: {without} of {len(ready)} ready endpoints have no {'hints' if hinted else 'zone'};"
            " zones count only where all have one"
        )


def _unserved(service: Service, endpoints: tuple[Endpoint, ...]) -> Iterator[str]:
    """Ports for which no endpoint has a port: usually a misspelt name."""
    offered = {(port.name, port.protocol) for endpoint in endpoints for port in endpoint.ports}
    if not endpoints:
        return
    for port in service.ports:
        if (port.name, port.protocol) not in offered:
            names = ", ".join(sorted(f"{name!r} {protocol.name}" for name, protocol in offered)) or "no ports"
            yield (
                f"Service {service.key}: port {port.name!r} {port.protocol.name} has no endpoint port of that name; "
                f"its endpoints have {names}"
            )
