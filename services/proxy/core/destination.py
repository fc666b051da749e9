"""What the name means that a client of the SOCKS proxy, or of `causeway forward`, gives as its target.

    edge-b                              the node edge-b itself: 127.0.0.1 there
    10.0.0.5.edge-b, db.edge-b          an address, or a name, as the node edge-b sees it
    web-0.edge-b                        a pod there that is an endpoint of a service, by its name
    web, web.shop, web.shop.svc.cluster.local       a service
    db-0.db.shop, db-0.db.shop.svc.cluster.local    an endpoint of a headless service
    10.96.0.7                           a service by its clusterIP

EdgeMesh knows the first of these. A node's name comes before a service's: the service has its longer names. Who is
allowed what decides the node at which the way ends (`core/policy.py`).
"""

import ipaddress
from collections.abc import Callable, Container
from typing import NamedTuple

DEFAULT_NAMESPACE = "default"
CLUSTER_DOMAIN = "cluster.local"
LOOPBACK = "127.0.0.1"
"""Where a node is itself: what listens on any of its addresses listens there, too."""


class ServiceName(NamedTuple):
    """A service, by its key "namespace/name"."""

    key: str


class EndpointName(NamedTuple):
    """An endpoint of a headless service, by the service's key and its own name below it."""

    key: str
    label: str


class NodeTarget(NamedTuple):
    """A host as a node sees it."""

    node: str
    host: str


class DestinationError(ValueError):
    """The name means nothing here. `allowed` False: it means something that nobody may ask for."""

    def __init__(self, why: str, *, allowed: bool = True) -> None:
        super().__init__(why)
        self.allowed = allowed


def find(
    host: str,
    service: Callable[[str], bool],
    endpoint: Callable[[str, str], bool],
    service_at: Callable[[str], str],
    nodes: Container[str],
) -> ServiceName | EndpointName | NodeTarget:
    """Where `host` leads. Raises DestinationError.

    `service`: whether there is one with that key. `endpoint`: whether that one has an endpoint of that name.
    `service_at`: the key of the one with that clusterIP, or "".
    """
    literal = _literal(host)
    if literal:
        key = service_at(literal)
        if not key:
            raise DestinationError(
                f"{literal} is not the clusterIP of a known service (what a node reaches is asked for as IP.NODE)",
                allowed=False,
            )
        return ServiceName(key)
    name = host.lower().rstrip(".")
    labels = name.split(".")
    if not all(labels):
        raise DestinationError(f"{host!r} is no name of a service or node")
    if name in nodes:
        return NodeTarget(name, LOOPBACK)
    key = service_key(name)
    if key and service(key):
        return ServiceName(key)
    below = name.partition(".")[2]
    key = service_key(below) if "." in below else ""
    if key and endpoint(key, labels[0]):
        return EndpointName(key, labels[0])
    for cut in range(1, len(labels)):  # the longest name of a node first: it may have dots
        node = ".".join(labels[cut:])
        if node in nodes:
            return NodeTarget(node, ".".join(labels[:cut]))
    if name.endswith((".svc", f".svc.{CLUSTER_DOMAIN}")):
        raise DestinationError(f"there is no service, or endpoint of one, {name}")
    # Perhaps a node that only others know: the tunnel looks for it.
    if len(labels) == 1:
        return NodeTarget(name, LOOPBACK)
    return NodeTarget(labels[-1], ".".join(labels[:-1]))


def service_key(name: str) -> str:
    """The key of the service that `name`, in lower case, may mean; "" when it can mean none."""
    labels = name.removesuffix(f".{CLUSTER_DOMAIN}").split(".")
    if len(labels) == 3 and labels[2] == "svc":
        labels.pop()
    match labels:
        case [service]:
            return f"{DEFAULT_NAMESPACE}/{service}"
        case [service, namespace]:
            return f"{namespace}/{service}"
    return ""


def _literal(host: str) -> str:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return ""
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip)
