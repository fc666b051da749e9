"""From the name that a client gives to a route: see core/destination.py for what names mean."""

from collections.abc import Iterable

from services.proxy import errors
from services.proxy.core import destination, names
from services.proxy.core.catalog import Backend, Endpoint, Network, Port, Service, join
from services.proxy.core.destination import DestinationError, EndpointName, NodeTarget
from services.proxy.core.plan import Wanted
from services.proxy.core.policy import Policy
from services.proxy.departure import Departure
from services.proxy.listeners import Listeners
from services.proxy.route import Route


class NoRoute(Exception):
    """Nobody is reached under that name. `reason` is one of `errors`."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Names:
    """Tell it of the services by `update`; `nodes` is kept by its owner."""

    def __init__(self, node: str, listeners: Listeners, departure: Departure, policy: Policy) -> None:
        self.nodes: set[str] = {node}
        self._node = node
        self._listeners = listeners
        self._departure = departure
        self._policy = policy
        self._services: dict[str, Service] = {}
        self._by_ip: dict[str, str] = {}

    def update(self, services: Iterable[Service]) -> None:
        """These are all the services known now."""
        self._services.clear()
        self._by_ip.clear()
        for service in services:
            self._services[service.key] = service
            for ip in service.cluster_ips:
                self._by_ip.setdefault(ip, service.key)

    def route(self, host: str, port: int, network: Network) -> Route:
        """Where a client goes that asks for `host`. Raises NoRoute."""
        try:
            found = destination.find(
                host,
                self._services.__contains__,
                lambda key, label: bool(self._endpoints(key, label)),
                lambda ip: self._by_ip.get(ip, ""),
                self._nodes(),
            )
        except DestinationError as error:
            raise NoRoute(errors.UNKNOWN if error.allowed else errors.DENIED, str(error)) from None
        if not port:
            raise NoRoute(errors.UNKNOWN, "expected a port from 1 to 65535")
        if isinstance(found, NodeTarget):
            return self._to_node(found, port, network)
        why = self._listeners.left_out(found.key)
        if why:
            raise NoRoute(errors.NO_ENDPOINT, f"the service {found.key} is {why}")
        if isinstance(found, EndpointName):
            return self._to_endpoint(found, port, network)
        if self._services[found.key].external_name:
            why = f"{found.key} is just another name for {self._services[found.key].external_name}"
            raise NoRoute(errors.NO_ENDPOINT, why)
        route = self._listeners.route(found.key, port, network)
        if route is None:
            raise NoRoute(errors.CONNECTION_REFUSED, f"the service {found.key} has no port {port} for {network}")
        return route

    def _nodes(self) -> set[str]:
        self.nodes.add(self._node)  # whatever discovery says
        return self.nodes

    def _endpoints(self, key: str, label: str) -> list[Endpoint]:
        service = self._services.get(key)
        if service is None or not service.headless:
            return []
        return [one for one in names.ready(service) if names.label(one) == label]

    def _to_endpoint(self, target: EndpointName, port: int, network: Network) -> Route:
        """`port` is the endpoint's: there is no address of the service's between it and the client."""
        backends = tuple(
            Backend(endpoint.node or self._node, endpoint.addresses[0], port)
            for endpoint in self._endpoints(*target)
            if any((own.network, own.number) == (network, port) for own in endpoint.ports)
        )
        if not backends:
            raise NoRoute(
                errors.CONNECTION_REFUSED,
                f"{target.label} of the service {target.key} has no port {port} for {network}",
            )
        return self._departure.route(Wanted(target.key, Port("", network, port), backends, kind="endpoint"))

    def _to_node(self, target: NodeTarget, port: int, network: Network) -> Route:
        address, host = join(target.host, port), target.host
        if target.node == self._node:
            # The exit is this very node: its policy holds for its own clients, too.
            verdict = self._policy.judge(network, address, self._node)
            if verdict.resolve:
                raise NoRoute(errors.DENIED, f"{target.host} is on this node: ask for an address instead of a name")
            if not verdict.allowed:
                raise NoRoute(errors.DENIED, verdict.why)
            host = verdict.host
        backend = Backend(target.node, host, port)
        return self._departure.route(Wanted("", Port("", network, port), (backend,)))
