"""How the clients of a service are spread over its backends, as its author asked for it.

Three places say so, the first that does wins: an Istio DestinationRule (`spec.trafficPolicy.loadBalancer`), the
Service's annotation `causeway/load-balancing`, and the configuration's `loadBalancer.defaultLBStrategy`. What the
Service's own fields say (`sessionAffinity`, `trafficDistribution`, `internalTrafficPolicy`) comes on top.
"""

import difflib
import json
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from services.proxy.core.catalog import Service
from services.proxy.core.request import Request

ANNOTATION = "causeway/load-balancing"

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
    does not. `near`: backends on this node first. `local`: no others. `name`: of the header, cookie or query parameter
    that is hashed."""

    strategy: Strategy = "round-robin"
    sticky: float = 0.0
    near: bool = False
    local: bool = False
    ring: Ring = _RING
    name: str = ""

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
    traffic = replace(
        default,
        sticky=service.sticky,
        near=service.distribution in ("PreferClose", "PreferSameNode", "PreferSameZone"),
        local=service.internal_policy == "Local",
    )
    if service.traffic_policy:
        chosen = _istio(service.traffic_policy)
    elif service.balancing:
        chosen = strategy_of(service.balancing), ""
    else:
        return traffic
    if chosen is None:
        return traffic
    strategy, name = chosen
    # One address may stand for many users: who asks for a header does not mean the address.
    return replace(traffic, strategy=strategy, name=name, sticky=0.0 if name else traffic.sticky)


def strategy_of(name: str) -> Plain:
    """Raises TrafficError with the nearest valid name."""
    folded = name.replace("-", "").replace("_", "").replace(" ", "").lower()
    found = _STRATEGIES.get(folded)
    if found is None:
        near = difflib.get_close_matches(name.lower(), _NAMES, n=1, cutoff=0.6)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise TrafficError(f"load balancing {name[:100]!r} is unknown, expected {', '.join(_NAMES)}{meant}")
    return found


def _istio(policy: str) -> tuple[Strategy, str] | None:
    """The strategy of `spec.trafficPolicy` as JSON, and what it hashes; None: it does not speak of load balancing."""
    balancer = json.loads(policy).get("loadBalancer")
    if balancer is None:
        return None
    if not isinstance(balancer, dict):
        raise TrafficError("DestinationRule: trafficPolicy.loadBalancer is not an object")
    simple: Any = balancer.get("simple")
    if simple is not None:
        return strategy_of(str(simple)), ""
    hashed = balancer.get("consistentHash")
    if not isinstance(hashed, dict):
        raise TrafficError("DestinationRule: trafficPolicy.loadBalancer has neither simple nor consistentHash")
    cookie = hashed.get("httpCookie")
    name: Any
    if (name := hashed.get("httpHeaderName")) is not None:
        return "header", _named(name, "httpHeaderName")
    if cookie is not None:  # one that is not there is not made, whatever its ttl: that would mean to change answers
        return "cookie", _named(cookie.get("name") if isinstance(cookie, dict) else None, "httpCookie.name")
    if (name := hashed.get("httpQueryParameterName")) is not None:
        return "query-parameter", _named(name, "httpQueryParameterName")
    if hashed.get("useSourceIp") is True:
        return "source-ip", ""
    raise TrafficError(
        "DestinationRule: consistentHash has none of httpHeaderName, httpCookie, httpQueryParameterName,"
        " useSourceIp: true"
    )


def _named(name: Any, key: str) -> str:
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise TrafficError(f"DestinationRule: consistentHash.{key} is {str(name)[:100]!r}, expected a name")
    return name
