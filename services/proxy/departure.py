"""Where an accepted client goes: to a backend on this node, or with its socket to the tunnel.

What no backend has accepted can go elsewhere, or be told why, with the bytes that were read of it meanwhile. Where a
service has several backends the client is kept until one has accepted it (`Outbound.keep` in protos/tunnel.proto); where
it has one the tunnel gives back whom it refuses (`Outbound.give_back`), which costs those it accepts nothing.
"""

import random
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from logging import DEBUG, WARNING, Logger
from weakref import WeakValueDictionary

from services.proxy import errors
from services.proxy.attach import AttachSocket, reset
from services.proxy.core.balancer import Balancer
from services.proxy.core.catalog import Backend, join
from services.proxy.core.health import RetryBudget
from services.proxy.core.plan import Wanted
from services.proxy.core.request import Request, speaks
from services.proxy.core.seldom import Seldom
from services.proxy.counters import Counters
from services.proxy.dialer import Dialer
from services.proxy.head import Heads
from services.proxy.manners import Manners
from services.proxy.peers import Opening, Outcome
from services.proxy.pump import DatagramPump, StreamPump
from services.proxy.refusals import Refusals
from services.runtime import descriptors, telemetry

MAX_KEPT = 4096  # clients that no backend has accepted yet; each holds a descriptor. Further ones get one attempt.
MAX_TRIES = 4  # backends that one client may try
RELAYED = 30.0  # s for which a node is taken to be reached through a relay: a path is soon upgraded, if it can be
TELL_EVERY, TELL_MOST = 60.0, 100  # s between two lines in the log on one service and reason; lines in that time

_TCP_CLOSE = 7  # state of a connection that was reset (net/tcp_states.h)


class Route:
    """One port of a service: its balancer, and for each backend the header for the tunnel made ready."""

    def __init__(self, want: Wanted, balancer: Balancer, number: int) -> None:
        """`number`: under which the tunnel gives clients back."""
        self.number = number
        self.service = want.service
        self.label = want.label
        self.network = want.port.network
        self.http = speaks(want.port.name, want.port.app)
        self.balancer = balancer
        self.budget = RetryBudget(time.monotonic())
        self.unasked = 0  # clients whose request was to be read, and was none that can be
        self._openings: dict[Backend, Opening] = {}
        balancer.update(want.backends, want.traffic)

    def __len__(self) -> int:
        return len(self.balancer.backends)

    @property
    def ejected(self) -> int:
        """Backends that are left out now."""
        return len(self.balancer.health.ejected(time.monotonic()))

    def update(self, want: Wanted) -> None:
        """Other backends, or another way to choose, from now on; clients that are on their way are not touched."""
        if want.backends != self.balancer.backends or want.traffic != self.balancer.traffic:
            self.balancer.update(want.backends, want.traffic)
            self._openings.clear()

    def opening(self, backend: Backend) -> Opening:
        opening = self._openings.get(backend)
        if opening is None:
            alone = len(self) == 1
            opening = self._openings[backend] = Opening(backend, self.network, self.service, self.number, alone=alone)
        return opening


@dataclass(slots=True, eq=False)
class _Leaving:
    """A client that no backend has accepted yet."""

    client: socket.socket
    address: tuple[str, int]
    route: Route
    head: bytes = b""  # read from the client, taken by nobody
    datagrams: Sequence[bytes] = ()
    key: str = ""  # of its request, where the policy asks for one
    backend: Backend | None = None  # on its way to
    tried: tuple[Backend, ...] = ()
    manners: Manners | None = None  # of the protocol by which it came
    span: telemetry.Span | None = None  # from the accept to the backend that took it, all attempts included


class Departure:
    """Sends clients on their way. Owns the pumps of connections that stay on this node."""

    def __init__(self, node: str, attach: AttachSocket, dialer: Dialer, counters: Counters, log: Logger) -> None:
        self._node = node
        self._attach = attach
        self._dialer = dialer
        self._counters = counters
        self._log = log
        self._heads = Heads()
        self._refusals = Refusals()
        self._seldom = Seldom(TELL_EVERY, TELL_MOST)
        self._udp_idle = 60.0  # s, see `rest`
        self._pumps: set[StreamPump | DatagramPump] = set()
        self._rng = random.Random()
        self._rtts: dict[str, float] = {}
        self._relayed: dict[str, float] = {}  # nodes, and until when that is believed
        self._kept: dict[int, _Leaving] = {}
        self._routes: WeakValueDictionary[int, Route] = WeakValueDictionary()
        self._watched: dict[int, tuple[Route, Backend]] = {}
        self._last = 0  # number that was given to a route or a client

    @property
    def crowded(self) -> bool:
        """Clients come faster than they can be sent on: those who are not accepted yet had better wait."""
        return self._attach.crowded

    def route(self, want: Wanted) -> Route:
        self._last += 1
        balancer = Balancer(self._node, want.traffic, self._rtts, self._rng, self._relayed)
        route = self._routes[self._last] = Route(want, balancer, self._last)
        return route

    def send(
        self,
        client: socket.socket,
        address: tuple[str, int],
        route: Route,
        datagrams: Sequence[bytes] = (),
        head: bytes = b"",
        manners: Manners | None = None,
    ) -> None:
        """Owns `client` from now on: a connected socket, for UDP with the datagrams that came before it. For TCP `head`
        was read of it before, and `manners` says what it is to be told."""
        self._counters.accepted[route.service] += 1
        route.budget.client()
        leaving = _Leaving(client, address, route, head, datagrams, manners=manners)
        if route.balancer.traffic.asks and route.network == "tcp" and len(route) > 1 and manners is None:
            self._heads.read(client, head, partial(self._headed, leaving))
        else:
            self._choose(leaving)

    def settle(self, outcome: Outcome, given: socket.socket | None = None) -> None:
        """The tunnel's word on a client that was kept, on one that it watches, or on one that it has `given` back."""
        number = outcome.number
        if outcome.ended:
            watched = self._watched.pop(number, None)
            if watched is not None:
                self._ended(*watched)
            return
        leaving = self._kept.pop(number, None)
        if leaving is None:
            self._given(outcome, given)
            return
        route, backend = leaving.route, leaving.backend
        assert backend is not None
        if not outcome.accepted:
            leaving.head = outcome.head
            self._failed(leaving, outcome.reason, outcome.why)
            return
        leaving.client.close()  # the tunnel has its own
        self._settled(leaving)
        self._worked(leaving)
        if outcome.rtt:
            self._rtts[backend.node] = outcome.rtt
        if outcome.relayed:
            self._relayed[backend.node] = time.monotonic() + RELAYED
        else:
            self._relayed.pop(backend.node, None)
        if route.balancer.counts:
            self._watched[number] = route, backend

    def _given(self, outcome: Outcome, client: socket.socket | None) -> None:
        """Back from its only attempt; None: the tunnel could not but reset it."""
        route = self._routes.get(outcome.number)
        if client is not None and route is not None:
            self._refuse(_Leaving(client, ("", 0), route, outcome.head), outcome.reason, outcome.why)
        elif client is not None:
            reset(client)  # of a service that is gone
        elif route is not None:
            self._counters.refused_local[route.service, outcome.reason] += 1

    def tunnel_lost(self, waiting: set[socket.socket]) -> None:
        """The tunnel is gone with what it had; those `waiting` go to the next one."""
        for number, leaving in list(self._kept.items()):
            if leaving.client not in waiting:
                del self._kept[number]
                # What the tunnel had read of it is gone, too: no answer would be one to its request.
                self._refuse(leaving, errors.NO_TUNNEL, "the tunnel ended", abrupt=True)
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
        self._heads.close()
        self._refusals.close()
        for pump in list(self._pumps):
            pump.abort()
        for leaving in self._kept.values():
            leaving.client.close()  # the tunnel's copy lives on
        self._kept.clear()

    # ── on the way ──

    def _headed(self, leaving: _Leaving, head: bytes, request: Request | None, reason: str) -> None:
        """What its request says is known now, or that there is none."""
        leaving.head = head
        if reason:
            self._refuse(leaving, reason, "the policy of this service needs the head of a request")
            return
        if request is None:
            leaving.route.unasked += 1
        else:
            leaving.key = leaving.route.balancer.traffic.key(request)
        self._choose(leaving)

    def _choose(self, leaving: _Leaving) -> None:
        balancer = leaving.route.balancer
        leaving.backend = balancer.pick(leaving.address[0], time.monotonic(), (), leaving.key)
        if leaving.route.network == "tcp" and (len(leaving.route) > 1 or leaving.manners is not None):
            leaving.span = telemetry.start_span(
                "proxy.accept", service=leaving.route.service, client=join(leaving.address[0], leaving.address[1])
            )
        if leaving.backend is None:
            self._refuse(leaving, errors.NO_ENDPOINT, f"{leaving.route.label} has no ready endpoint on a known node")
        else:
            self._try(leaving, leaving.backend)

    def _try(self, leaving: _Leaving, backend: Backend) -> None:
        route = leaving.route
        if backend.node == self._node:
            if 2 * len(self._pumps) >= descriptors.room():
                self._refuse(leaving, errors.LIMIT, "too many connections stay on this node already")
                return
            self._dialer.dial(route.network, backend.ip, backend.port, partial(self._arrived, leaving, backend))
            return
        source = join(leaving.address[0], leaving.address[1])
        several = len(route) > 1 or leaving.manners is not None
        keep = route.network == "tcp" and several and len(self._kept) < MAX_KEPT
        if leaving.manners is not None and not keep:
            self._refuse(leaving, errors.LIMIT, f"{MAX_KEPT} clients wait for a backend already")
            return
        opening = route.opening(backend)
        if not keep:
            with telemetry.span("proxy.accept", service=route.service, node=backend.node, client=source) as span:
                header = opening.encode(source, span.traceparent, leaving.datagrams, leaving.head)
                self._attach.give(header, leaving.client, partial(self._missed, leaving))
            return
        self._last += 1
        self._kept[self._last] = leaving
        header = opening.encode_kept(
            self._last,
            source,
            leaving.span.traceparent if leaving.span is not None else "",
            leaving.head,
            watch=route.balancer.counts,
            welcome=leaving.manners.welcome if leaving.manners is not None else b"",
        )
        self._attach.give(header, leaving.client, partial(self._dropped, self._last), keep=True)

    def _arrived(self, leaving: _Leaving, backend: Backend, sock: socket.socket | None, reason: str, why: str) -> None:
        """A backend on this node answered, or did not."""
        route = leaving.route
        if sock is None:
            self._failed(leaving, reason, why)
            return
        self._counters.dialled[route.service] += 1
        leaving.client.setblocking(False)
        if route.network == "tcp":
            self._settled(leaving)
            self._worked(leaving)
            welcome = leaving.manners.welcome if leaving.manners is not None else b""
            pumped = partial(self._pumped, route, backend)
            self._pumps.add(StreamPump(leaving.client, sock, pumped, leaving.head, welcome))
            return
        for datagram in leaving.datagrams:
            try:
                sock.send(datagram)
            except OSError:
                break
        self._pumps.add(DatagramPump(leaving.client, sock, self._pumps.discard, lambda: self._udp_idle))

    def _worked(self, leaving: _Leaving) -> None:
        balancer, backend = leaving.route.balancer, leaving.backend
        assert backend is not None
        balancer.health.worked(backend)
        if balancer.counts:
            balancer.active[backend] += 1

    def _failed(self, leaving: _Leaving, reason: str, why: str) -> None:
        """Nobody has taken a byte of the client's: on to the next backend, if there is one."""
        route, backend, now = leaving.route, leaving.backend, time.monotonic()
        assert backend is not None
        if route.network != "tcp" or len(route) == 1:
            self._refuse(leaving, reason, why)
            return
        if _was_reset(leaving.client):
            leaving.client.close()  # it gave up itself
            self._settled(leaving, "the client gave up")
            return
        # Where a node is at its limit nobody has asked the backend.
        if reason != errors.LIMIT and route.balancer.health.failed(backend, now):
            self._counters.ejected[route.service] += 1
            self._log.warning(
                "a backend fails, leaving it out for a while",
                extra={"target": route.label, "peer": backend.node, "address": backend.address, "error": why},
            )
        leaving.tried = (*leaving.tried, backend)
        another = None
        if len(leaving.tried) < MAX_TRIES:
            another = route.balancer.pick(leaving.address[0], now, leaving.tried, leaving.key)
        if another is None or not route.budget.take(now):
            self._refuse(leaving, reason, why)
            return
        self._counters.retried[route.service] += 1
        if leaving.span is not None:
            leaving.span.event("retry", node=backend.node, error=why)
        leaving.backend = another
        self._try(leaving, another)

    def _dropped(self, number: int) -> None:
        """The tunnel stayed away for too long."""
        leaving = self._kept.pop(number, None)
        if leaving is not None:
            self._missed(leaving)

    def _missed(self, leaving: _Leaving) -> None:
        """The same for one that was not kept."""
        self._refuse(leaving, errors.NO_TUNNEL, "the tunnel of this node is away, or too busy")

    def _refuse(self, leaving: _Leaving, reason: str, why: str, *, abrupt: bool = False) -> None:
        route = leaving.route
        self._settled(leaving, why)
        self._counters.refused_local[route.service, reason] += 1
        self._log.log(
            WARNING if self._seldom.first((route.label, reason), time.monotonic()) else DEBUG,
            "refused a client",
            extra={"target": route.label, "reason": reason, "error": why},
        )
        if leaving.manners is not None:
            leaving.manners.refuse(leaving.client, reason, why)
        elif abrupt:
            reset(leaving.client)
        else:
            self._refusals.tell(leaving.client, reason, why, leaving.head, patient=route.http is not False)

    @staticmethod
    def _settled(leaving: _Leaving, error: str = "") -> None:
        """The client has its backend, or gets none."""
        span, leaving.span = leaving.span, None
        if span is not None:
            if not error and leaving.backend is not None:
                span.set(node=leaving.backend.node)
            span.end(error)

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


def _was_reset(client: socket.socket) -> bool:
    try:
        return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
    except OSError:  # one end of a pair, whose other end is the gateway's
        return False
