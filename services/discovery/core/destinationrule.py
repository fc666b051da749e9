"""Istio's DestinationRule (istio.io/latest/docs/reference/config/networking/destination-rule): how the clients of a
service are spread. What its trafficPolicy means is for its reader, the proxy."""

from __future__ import annotations

import json
from typing import NamedTuple

from .fields import FieldError, Fields

_KNOWN = ("host", "trafficPolicy", "exportTo")
# Subsets are told apart by labels of pods. The routes of a VirtualService that name one are refused by their reader.
_WHY = {"subsets": ": labels of pods are in no EndpointSlice; give each version a Service of its own"}


class Rule(NamedTuple):
    """`service`: "namespace/name" of its host. `policy`: spec.trafficPolicy as JSON. `idle`: fields that have no effect
    here, with the reason where that is no plain one. `where`: the document, for people."""

    where: str
    service: str
    policy: str
    idle: tuple[str, ...]


def read(where: str, namespace: str, spec: Fields) -> Rule:
    """Raises FieldError."""
    service = _service(spec.text("host", required=True), namespace)
    if spec.section("workloadSelector").values:
        raise FieldError("spec.workloadSelector is not supported: which pod a client runs in is not known here")
    idle = tuple(
        f"spec.{key} has no effect{_WHY.get(key, '')}"
        for key, value in spec.values.items()
        if key not in _KNOWN and value
    )
    return Rule(where, service, json.dumps(spec.section("trafficPolicy").values, default=str), idle)


def _service(host: str, namespace: str) -> str:
    """ "namespace/name" of a short name, or of "name.namespace[.svc[.cluster.local]]"."""
    name, _, rest = host.lower().partition(".")
    other, _, suffix = rest.partition(".")
    if not name or "*" in host or suffix not in ("", "svc", "svc.cluster.local"):
        raise FieldError(f"spec.host is {host!r}, expected a Service: NAME or NAME.NAMESPACE.svc.cluster.local")
    return f"{other or namespace}/{name}"
