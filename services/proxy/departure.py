"""Where an accepted client goes: to a backend on this node, or with its socket to the tunnel."""

import socket
from collections.abc import Callable, Sequence
from logging import Logger

from services.proxy import errors
from services.proxy.attach import AttachSocket, reset
from services.proxy.core.balancer import RoundRobin
from services.proxy.core.catalog import Backend, join
from services.proxy.core.plan import Wanted
from services.proxy.counters import Counters
from services.proxy.dialer import Dialer
from services.proxy.peers import Opening
from services.proxy.pump import DatagramPump, StreamPump
from services.runtime import telemetry


class Route:
    """One port of a service: its backends in turn, each with the header for the tunnel made ready."""

    def __init__(self, want: Wanted, lost: Callable[["Route"], None]) -> None:
        self.service = want.service
        self.label = want.label
        self.network = want.port.network
        self.lost = lambda: lost(self)
        self._balancer = RoundRobin(want.backends)
        self._backends = want.backends
        self._openings: dict[Backend, Opening] = {}

    def __len__(self) -> int:
        return len(self._backends)

    def update(self, want: Wanted) -> None:
        """Other backends from now on; clients that are on their way are not touched."""
        if want.backends != self._backends:
            self._backends = want.backends
            self._balancer.replace(want.backends)
            self._openings.clear()

    def pick(self) -> Backend | None:
        return self._balancer.pick()

    def opening(self, backend: Backend) -> Opening:
        opening = self._openings.get(backend)
        if opening is None:
            opening = self._openings[backend] = Opening(backend, self.network, self.service)
        return opening


class Departure:
    """Sends clients on their way. Owns the pumps of connections that stay on this node."""

    def __init__(self, node: str, attach: AttachSocket, dialer: Dialer, counters: Counters, log: Logger) -> None:
        self._node = node
        self._attach = attach
        self._dialer = dialer
        self._counters = counters
        self._log = log
        self._pumps: set[StreamPump | DatagramPump] = set()

    def route(self, want: Wanted) -> Route:
        return Route(want, self._lost)

    def send(
        self, client: socket.socket, address: tuple[str, int], route: Route, datagrams: Sequence[bytes] = ()
    ) -> None:
        """Owns `client` from now on: a connected socket, for UDP with the datagrams that came before it."""
        self._counters.accepted[route.service] += 1
        backend = route.pick()
        if backend is None:
            self._refuse(client, route, errors.NO_ENDPOINT)
        elif backend.node == self._node:
            self._stay(client, backend, route, datagrams)
        else:
            source = join(address[0], address[1])
            with telemetry.span("proxy.accept", service=route.service, node=backend.node, client=source) as span:
                header = route.opening(backend).encode(source, span.traceparent, datagrams)
                self._attach.give(header, client, route.lost)

    def close(self) -> None:
        """Ends the connections that stay on this node; those with the tunnel live on."""
        for pump in list(self._pumps):
            pump.abort()

    def _stay(self, client: socket.socket, backend: Backend, route: Route, datagrams: Sequence[bytes]) -> None:
        def connected(sock: socket.socket | None, reason: str, why: str) -> None:
            if sock is None:
                self._log.debug("cannot reach a backend here", extra={"target": route.label, "error": why})
                self._refuse(client, route, reason)
                return
            self._counters.dialled[route.service] += 1
            client.setblocking(False)
            if route.network == "tcp":
                self._pumps.add(StreamPump(client, sock, self._pumps.discard))
                return
            for datagram in datagrams:
                try:
                    sock.send(datagram)
                except OSError:
                    break
            self._pumps.add(DatagramPump(client, sock, self._pumps.discard))

        self._dialer.dial(route.network, backend.ip, backend.port, connected)

    def _refuse(self, client: socket.socket, route: Route, reason: str) -> None:
        self._counters.refused_local[route.service, reason] += 1
        reset(client)

    def _lost(self, route: Route) -> None:
        self._counters.refused_local[route.service, errors.NO_TUNNEL] += 1
