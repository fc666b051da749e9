"""How the clients of a service are spread over its backends, as its author asked for it.

Three places say so, the first that does wins: an Istio DestinationRule (`spec.trafficPolicy.loadBalancer`), the
Service's annotation `causeway/load-balancing`, and the configuration's `loadBalancer.defaultLBStrategy`. What the
Service's own fields say (`sessionAffinity`, `trafficDistribution`, `internalTrafficPolicy`) comes on top.

    causeway/load-balancing: header x-user          or cookie NAME, query-parameter NAME, or one of the plain names
    causeway/consistent-hash: load=1.1              and partitionCount, replicationFactor; the others as configured

A DestinationRule's `connectionPool.tcp.connectTimeout` bounds an attempt to connect, see core/patience.py.
"""

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from services.proxy.core.catalog import Service
from services.proxy.core.patience import CONNECT
from services.proxy.core.request import Request

PREFIX = "causeway/"  # of the annotations that are ours
BALANCING, RING = "load-balancing", "consistent-hash"  # behind it

Plain = Literal["round-robin", "random", "least-latency", "least-connections", "p2c", "source-ip"]
# Consistent hash by what the first request on a connection says.
Asking = Literal["header", "cookie", "query-parameter"]
Strategy = Plain | Asking

# Our names, Istio's (SimpleLB in destination_rule.proto) and EdgeMesh's (defaultLBStrategy), without case and dashes.
_STRATEGIES: dict[str, Plain] = {
    "roundrobin": "round-robin",
    "random": "random",
    "leastlatency": "least-latency",
    "leastconnections": "least-connections",
    "leastconn": "least-connections",
    "leastrequest": "least-connections",
    "p2c": "p2c",
    "poweroftwochoices": "p2c",
    "sourceip": "source-ip",
    "consistenthash": "source-ip",
    "passthrough": "round-robin",
    "unspecified": "round-robin",
}
_NAMES = ("round-robin", "random", "least-latency", "least-connections", "p2c", "source-ip")
_ASKING: tuple[Asking, ...] = ("header", "cookie", "query-parameter")

# What the configuration's loadBalancer.consistentHash allows (services/runtime/proxy_section.py).
_BOUNDS = {"partitionCount": (1, 65_536), "replicationFactor": (1, 1000), "load": (1.0, 100.0)}

_HASH = "DestinationRule: consistentHash"
_CONNECT = "DestinationRule: connectionPool.tcp.connectTimeout"

# Istio's durations, such as 1m30s or 250ms; at least 1 ms (destination_rule.proto).
_DURATION = re.compile(r"(?=\d)(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")
_LONGEST = 3600.0  # s; a longer one is a slip

# Names of headers, and of what else may be hashed: a token (RFC 9110, 5.6.2).
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")


class TrafficError(ValueError):
    """What a service asks for means nothing, or is not to be had."""


@dataclass(frozen=True, slots=True)
class Ring:
    """The consistent hash. With EdgeMesh's defaults (100 partitions, 10 points) the loss of one of five backends moved
    up to 14 % of the keys of the other four, with these under 2 % (measured over 200 losses)."""

    partitions: int = 1000
    replicas: int = 100  # points of one backend on the circle
    load: float = 1.25  # most partitions of a backend, by the average


_RING = Ring()


@dataclass(frozen=True, slots=True)
class Traffic:
    """See the module. `sticky`: seconds after a client's last connection that it comes back to the same backend; 0:
    does not. `near`: backends on this node first, then, within a zone, over direct paths. `local`: no others. `name`: of the header,
    cookie or query parameter that is hashed. `connect`: seconds for an attempt to connect to a backend. `ports`: those of
    the service that are spread otherwise, see `at`."""

    strategy: Strategy = "round-robin"
    sticky: float = 0.0
    near: bool = False
    local: bool = False
    ring: Ring = _RING
    name: str = ""
    connect: float = CONNECT
    ports: "tuple[tuple[int, Traffic], ...]" = ()

    def at(self, port: int) -> "Traffic":
        """Of one port of the service."""
        return dict(self.ports).get(port, self)

    def __str__(self) -> str:
        return f"{self.strategy} {self.name}" if self.name else self.strategy

    @property
    def asks(self) -> bool:
        """Whether the head of a client's request must be read to choose."""
        return bool(self.name)

    @property
    def hashed(self) -> bool:
        """Whether a client has a backend of its own, by consistent hash."""
        return self.asks or self.strategy == "source-ip"

    def key(self, request: Request) -> str:
        """What is hashed; "" where the request does not have it: the client's address is hashed then."""
        match self.strategy:
            case "header":
                return request.header(self.name)
            case "cookie":
                return request.cookie(self.name)
            case "query-parameter":
                return request.parameter(self.name)
        return ""


ROUND_ROBIN = Traffic()


def parse(service: Service, default: Traffic) -> Traffic:
    """What `service` asks for. Raises TrafficError with one line for its author."""
    if not service.traffic_policy:
        return _asked(service, default, {})
    policy = json.loads(service.traffic_policy)
    # "Traffic settings specified at the destination-level will not be inherited when overridden by port-level settings"
    # (DestinationRule reference).
    ports = tuple((number, _asked(service, default, settings)) for number, settings in _port_levels(policy))
    return replace(_asked(service, default, policy), ports=ports)


def _asked(service: Service, default: Traffic, policy: Any) -> Traffic:
    """`policy`: of the DestinationRule, as it is or of one port."""
    traffic = replace(
        default,
        sticky=service.sticky,
        # PreferSameZone means the zone and nothing nearer (KEP-3015): see core/topology.py.
        near=service.distribution in ("PreferClose", "PreferSameNode"),
        local=service.internal_policy == "Local",
    )
    traffic = replace(traffic, connect=_connect(policy, traffic.connect))
    chosen = _istio(policy)
    if chosen is None and BALANCING in service.annotations:
        chosen = _annotated(service.annotations[BALANCING])
    if chosen is not None:
        strategy, name = chosen
        # One address may stand for many users: who asks for a header does not mean the address.
        traffic = replace(traffic, strategy=strategy, name=name, sticky=0.0 if name else traffic.sticky)
    for key in service.annotations.keys() - {BALANCING, RING}:
        raise TrafficError(f"annotation {PREFIX}{key[:100]} is unknown, expected {PREFIX}{BALANCING} or {PREFIX}{RING}")
    if RING in service.annotations:
        if not traffic.hashed:
            raise TrafficError(f"annotation {PREFIX}{RING} means nothing to {traffic}")
        traffic = replace(traffic, ring=_ring(service.annotations[RING], traffic.ring))
    return traffic


def _annotated(text: str) -> tuple[Strategy, str]:
    """The strategy, and what it hashes."""
    word, _, name = text.strip().partition(" ")
    for asking in _ASKING:
        if word.lower() == asking:
            return asking, _named(name.strip(), f"annotation {PREFIX}{BALANCING}: {asking}")
    return strategy_of(text, (*_NAMES, *(f"{asking} NAME" for asking in _ASKING))), ""


def _ring(text: str, ring: Ring) -> Ring:
    """ "load=1.1, partitionCount=500": the rest is as it is in `ring`."""
    found = {"partitionCount": ring.partitions, "replicationFactor": ring.replicas, "load": ring.load}
    for part in text.replace(",", " ").split():
        key, _, value = part.partition("=")
        try:
            low, high = _BOUNDS[key]
            found[key] = float(value) if key == "load" else int(value)
            if not low <= found[key] <= high:
                raise ValueError
        except KeyError:
            expected = ", ".join(_BOUNDS)
            raise TrafficError(f"annotation {PREFIX}{RING}: {key[:100]!r} is unknown, expected {expected}") from None
        except ValueError:
            raise TrafficError(
                f"annotation {PREFIX}{RING}: {key} is {value[:100]!r}, expected {low} to {high}"
            ) from None
    return Ring(int(found["partitionCount"]), int(found["replicationFactor"]), found["load"])


def strategy_of(name: str, expected: tuple[str, ...] = _NAMES) -> Plain:
    """Raises TrafficError with the nearest valid name."""
    folded = name.replace("-", "").replace("_", "").replace(" ", "").lower()
    found = _STRATEGIES.get(folded)
    if found is None:
        near = difflib.get_close_matches(name.lower(), expected, n=1, cutoff=0.6)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise TrafficError(f"load balancing {name[:100]!r} is unknown, expected {', '.join(expected)}{meant}")
    return found


def _port_levels(policy: Any) -> Iterator[tuple[int, Any]]:
    """Port numbers and settings of `spec.trafficPolicy.portLevelSettings`."""
    levels = policy.get("portLevelSettings") or []
    try:
        for level in levels:
            yield int(level["port"]["number"]), level
    except (TypeError, KeyError, ValueError):
        raise TrafficError("DestinationRule: trafficPolicy.portLevelSettings has no port.number") from None


def _istio(policy: Any) -> tuple[Strategy, str] | None:
    """The strategy of `spec.trafficPolicy`, and what it hashes; None: it does not say."""
    balancer = policy.get("loadBalancer")
    if balancer is None:
        return None
    if not isinstance(balancer, dict):
        raise TrafficError("DestinationRule: trafficPolicy.loadBalancer is not an object")
    simple: Any = balancer.get("simple")
    if simple is not None:
        return strategy_of(str(simple)), ""
    hashed = balancer.get("consistentHash")
    if hashed is None and "localityLbSetting" in balancer:
        return None
    if not isinstance(hashed, dict):
        raise TrafficError("DestinationRule: trafficPolicy.loadBalancer has neither simple nor consistentHash")
    cookie = hashed.get("httpCookie")
    name: Any
    if (name := hashed.get("httpHeaderName")) is not None:
        return "header", _named(name, f"{_HASH}.httpHeaderName")
    if cookie is not None:  # one that is not there is not made, whatever its ttl: that would mean to change answers
        return "cookie", _named(cookie.get("name") if isinstance(cookie, dict) else None, f"{_HASH}.httpCookie.name")
    if (name := hashed.get("httpQueryParameterName")) is not None:
        return "query-parameter", _named(name, f"{_HASH}.httpQueryParameterName")
    if hashed.get("useSourceIp") is True:
        return "source-ip", ""
    raise TrafficError(f"{_HASH} has none of httpHeaderName, httpCookie, httpQueryParameterName, useSourceIp: true")


def _connect(policy: Any, default: float) -> float:
    """The time to connect of `spec.trafficPolicy`, seconds."""
    found = policy
    for key in ("connectionPool", "tcp", "connectTimeout"):
        found = found.get(key) if isinstance(found, dict) else None
    if found is None:
        return default
    match = _DURATION.fullmatch(str(found))
    parts = [float(part or 0) for part in match.groups()] if match else [0.0] * 4
    seconds = parts[0] * 3600 + parts[1] * 60 + parts[2] + parts[3] / 1000
    if not 0.001 <= seconds <= _LONGEST:
        raise TrafficError(f"{_CONNECT} is {str(found)[:100]!r}, expected 1ms to 1h, such as 1.5s or 250ms")
    return seconds


def _named(name: Any, key: str) -> str:
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise TrafficError(f"{key} is {str(name)[:100]!r}, expected a name")
    return name
