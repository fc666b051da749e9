"""Where an accepted client goes: to a backend on this node, or with its socket to the tunnel.

Where a service has several backends, the client is kept until one has accepted it: what fails before goes to the next,
with the bytes that were read meanwhile (`Outbound.keep` in protos/tunnel.proto).
"""

import random
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from logging import Logger

from services.proxy import errors
from services.proxy.attach import AttachSocket, reset
from services.proxy.core.balancer import Balancer
from services.proxy.core.catalog import Backend, join
from services.proxy.core.health import RetryBudget
from services.proxy.core.plan import Wanted
from services.proxy.counters import Counters
from services.proxy.dialer import Dialer
from services.proxy.peers import Opening, Outcome
from services.proxy.pump import DatagramPump, StreamPump
from services.runtime import descriptors, telemetry

MAX_KEPT = 4096  # clients that no backend has accepted yet; each holds a descriptor. Further ones get one attempt.
MAX_TRIES = 4  # backends that one client may try

_TCP_CLOSE = 7  # state of a connection that was reset (net/tcp_states.h)


class Route:
    """One port of a service: its backends, each with the header for the tunnel made ready."""

    def __init__(self, want: Wanted, balancer: Balancer) -> None:
        self.service = want.service
        self.label = want.label
        self.network = want.port.network
        self.balancer = balancer
        self.budget = RetryBudget(time.monotonic())
        self.traffic = want.traffic
        self._backends = want.backends
        self._openings: dict[Backend, Opening] = {}
        balancer.update(want.backends, want.traffic)

    def __len__(self) -> int:
        return len(self._backends)

    @property
    def ejected(self) -> int:
        """Backends that are left out now."""
        return len(self.balancer.health.ejected(time.monotonic()))

    def update(self, want: Wanted) -> None:
        """Other backends, or another way to choose, from now on; clients that are on their way are not touched."""
        if want.backends != self._backends or want.traffic != self.traffic:
            self._backends, self.traffic = want.backends, want.traffic
            self.balancer.update(want.backends, want.traffic)
            self._openings.clear()

    def opening(self, backend: Backend) -> Opening:
        opening = self._openings.get(backend)
        if opening is None:
            opening = self._openings[backend] = Opening(backend, self.network, self.service)
        return opening


@dataclass(slots=True, eq=False)
class _Kept:
    """A client that may yet go elsewhere."""

    client: socket.socket
    address: tuple[str, int]
    route: Route
    backend: Backend  # on its way to
    tried: tuple[Backend, ...] = ()
    head: bytes = b""  # read from the client, taken by nobody
    span: telemetry.Span | None = None  # from the accept to the backend that took it, all attempts included


class Departure:
    """Sends clients on their way. Owns the pumps of connections that stay on this node."""

    def __init__(self, node: str, attach: AttachSocket, dialer: Dialer, counters: Counters, log: Logger) -> None:
        self._node = node
        self._attach = attach
        self._dialer = dialer
        self._counters = counters
        self._log = log
        self._udp_idle = 60.0  # s, see `rest`
        self._pumps: set[StreamPump | DatagramPump] = set()
        self._rng = random.Random()
        self._rtts: dict[str, float] = {}
        self._kept: dict[int, _Kept] = {}
        self._watched: dict[int, tuple[Route, Backend]] = {}
        self._last = 0

    @property
    def crowded(self) -> bool:
        """Clients come faster than they can be sent on: those who are not accepted yet had better wait."""
        return self._attach.crowded

    def route(self, want: Wanted) -> Route:
        return Route(want, Balancer(self._node, want.traffic, self._rtts, self._rng))

    def send(
        self, client: socket.socket, address: tuple[str, int], route: Route, datagrams: Sequence[bytes] = ()
    ) -> None:
        """Owns `client` from now on: a connected socket, for UDP with the datagrams that came before it."""
        self._counters.accepted[route.service] += 1
        route.budget.client()
        backend = route.balancer.pick(address[0], time.monotonic())
        if backend is None:
            self._refuse(client, route, errors.NO_ENDPOINT)
        elif backend.node == self._node and 2 * len(self._pumps) >= descriptors.room():
            self._refuse(client, route, errors.LIMIT)
        elif len(route) > 1 and route.network == "tcp" and len(self._kept) < MAX_KEPT:
            span = telemetry.start_span("proxy.accept", service=route.service, client=join(address[0], address[1]))
            self._try(_Kept(client, address, route, backend, span=span))
        elif backend.node == self._node:
            self._dialer.dial(route.network, backend.ip, backend.port, partial(self._arrived, client, route, datagrams))
        else:
            source = join(address[0], address[1])
            with telemetry.span("proxy.accept", service=route.service, node=backend.node, client=source) as span:
                header = route.opening(backend).encode(source, span.traceparent, datagrams)
                self._attach.give(header, client, partial(self._lost, route))

    def settle(self, outcome: Outcome) -> None:
        """The tunnel's word on a client that was kept, or on one that it watches."""
        number = outcome.number
        if outcome.ended:
            watched = self._watched.pop(number, None)
            if watched is not None:
                self._ended(*watched)
            return
        kept = self._kept.pop(number, None)
        if kept is None:
            return
        route, backend = kept.route, kept.backend
        if not outcome.accepted:
            kept.head = outcome.head
            self._failed(kept, outcome.reason, outcome.why)
            return
        kept.client.close()  # the tunnel has its own
        self._settled(kept)
        route.balancer.health.worked(backend)
        if outcome.rtt:
            self._rtts[backend.node] = outcome.rtt
        if route.balancer.counts:
            route.balancer.active[backend] += 1
            self._watched[number] = route, backend

    def tunnel_lost(self, waiting: set[socket.socket]) -> None:
        """The tunnel is gone with what it had; those `waiting` go to the next one."""
        for number, kept in list(self._kept.items()):
            if kept.client not in waiting:
                del self._kept[number]
                self._settled(kept, errors.NO_TUNNEL)
                self._refuse(kept.client, kept.route, errors.NO_TUNNEL)
        for watched in self._watched.values():
            self._ended(*watched)
        self._watched.clear()

    def rest(self, seconds: float) -> None:
        """Time without a datagram until a flow that stays on this node ends, for those that are open as well."""
        self._udp_idle = seconds
        for pump in list(self._pumps):
            if isinstance(pump, DatagramPump):
                pump.check()

    def close(self) -> None:
        """Ends the connections that stay on this node; those with the tunnel live on."""
        for pump in list(self._pumps):
            pump.abort()
        for kept in self._kept.values():
            kept.client.close()  # the tunnel's copy lives on
        self._kept.clear()

    # ── clients that are kept ──

    def _try(self, kept: _Kept) -> None:
        route, backend = kept.route, kept.backend
        if backend.node == self._node:
            self._dialer.dial("tcp", backend.ip, backend.port, partial(self._tried, kept))
            return
        self._last += 1
        self._kept[self._last] = kept
        source = join(*kept.address)
        traceparent = kept.span.traceparent if kept.span is not None else ""
        header = route.opening(backend).encode_kept(
            self._last, source, traceparent, kept.head, watch=route.balancer.counts
        )
        self._attach.give(header, kept.client, partial(self._dropped, self._last), keep=True)

    def _tried(self, kept: _Kept, sock: socket.socket | None, reason: str, why: str) -> None:
        """A backend on this node answered, or did not."""
        route, backend = kept.route, kept.backend
        if sock is None:
            self._failed(kept, reason, why)
            return
        self._settled(kept)
        route.balancer.health.worked(backend)
        self._counters.dialled[route.service] += 1
        if route.balancer.counts:
            route.balancer.active[backend] += 1
        kept.client.setblocking(False)
        self._pumps.add(StreamPump(kept.client, sock, partial(self._pumped, route, backend), kept.head))

    def _failed(self, kept: _Kept, reason: str, why: str) -> None:
        """Nobody has taken a byte of the client's: on to the next backend, if there is one."""
        route, now = kept.route, time.monotonic()
        if kept.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            kept.client.close()  # it gave up itself
            self._settled(kept, "the client gave up")
            return
        if route.balancer.health.failed(kept.backend, now):
            self._counters.ejected[route.service] += 1
            self._log.warning(
                "a backend fails, leaving it out for a while",
                extra={"target": route.label, "peer": kept.backend.node, "address": kept.backend.address, "error": why},
            )
        tried = (*kept.tried, kept.backend)
        backend = route.balancer.pick(kept.address[0], now, tried) if len(tried) < MAX_TRIES else None
        if backend is None or not route.budget.take(now):
            self._log.debug("no backend answers", extra={"target": route.label, "error": why})
            self._settled(kept, why)
            self._refuse(kept.client, route, reason)
            return
        self._counters.retried[route.service] += 1
        if kept.span is not None:
            kept.span.event("retry", node=kept.backend.node, error=why)
        self._try(_Kept(kept.client, kept.address, route, backend, tried, kept.head, kept.span))

    def _dropped(self, number: int) -> None:
        """The tunnel stayed away for too long."""
        kept = self._kept.pop(number, None)
        if kept is not None:
            self._settled(kept, errors.NO_TUNNEL)
            self._refuse(kept.client, kept.route, errors.NO_TUNNEL)

    @staticmethod
    def _settled(kept: _Kept, error: str = "") -> None:
        """The client has its backend, or gets none."""
        if kept.span is not None:
            if not error:
                kept.span.set(node=kept.backend.node)
            kept.span.end(error)

    def _pumped(self, route: Route, backend: Backend, pump: StreamPump) -> None:
        self._pumps.discard(pump)
        self._ended(route, backend)

    @staticmethod
    def _ended(route: Route, backend: Backend) -> None:
        """A connection that counted is over."""
        active = route.balancer.active
        if active[backend] > 1:
            active[backend] -= 1
        else:
            del active[backend]

    # ── clients with one way to go ──

    def _arrived(
        self,
        client: socket.socket,
        route: Route,
        datagrams: Sequence[bytes],
        sock: socket.socket | None,
        reason: str,
        why: str,
    ) -> None:
        """The only backend, on this node, answered or did not."""
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
        self._pumps.add(DatagramPump(client, sock, self._pumps.discard, lambda: self._udp_idle))

    def _refuse(self, client: socket.socket, route: Route, reason: str) -> None:
        self._counters.refused_local[route.service, reason] += 1
        reset(client)

    def _lost(self, route: Route) -> None:
        self._counters.refused_local[route.service, errors.NO_TUNNEL] += 1
