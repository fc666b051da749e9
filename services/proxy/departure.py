"""Where an accepted client goes: to a backend on this node, or with its socket to the tunnel.

What no backend has accepted can go elsewhere, or be told why, with the bytes that were read of it meanwhile. Where a
service has several backends the client is kept until one has accepted it (`Outbound.keep` in protos/tunnel.proto); where
it has one the tunnel gives back whom it refuses (`Outbound.give_back`), which costs those it accepts nothing.
"""

import asyncio
import random
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from logging import DEBUG, WARNING, Logger
from weakref import WeakValueDictionary

from services.proxy import errors
from services.proxy.attach import AttachSocket
from services.proxy.core.balancer import Balancer
from services.proxy.core.catalog import Backend, join
from services.proxy.core.patience import CONNECT, patience
from services.proxy.core.plan import Wanted
from services.proxy.core.request import Request
from services.proxy.counters import Counters
from services.proxy.dialer import Dialer
from services.proxy.head import Heads
from services.proxy.manners import Manners
from services.proxy.outcomes import Outcomes
from services.proxy.peers import Outcome
from services.proxy.pump import DatagramPump, Meter, StreamPump
from services.proxy.refusals import Refusals
from services.proxy.route import Route, Use
from services.runtime import descriptors, telemetry
from services.runtime.core.seldom import Seldom
from services.runtime.sockets import reset

MAX_KEPT = 4096  # clients that no backend has accepted yet; each holds a descriptor. Further ones get one attempt.
TELL_EVERY, TELL_MOST = 60.0, 100  # s between two lines in the log on one service and reason; lines in that time

# What a backend did, whether its client had the patience to see it or not.
_BACKENDS_OWN = (errors.UNREACHABLE, errors.CONNECTION_REFUSED)
_TCP_CLOSE = 7  # state of a connection that was reset (net/tcp_states.h)


@dataclass(slots=True, eq=False)
class _Leaving:
    """A client that no backend has accepted yet."""

    client: socket.socket
    address: tuple[str, int]
    route: Route
    came: float  # loop time
    head: bytes = b""  # read from the client, taken by nobody
    datagrams: Sequence[bytes] = ()
    key: str = ""  # of its request, where the policy asks for one
    use: Use | None = None  # of the backend that it is on its way to
    tried: tuple[Backend, ...] = ()  # that one is the last of them
    whole: bool = True  # this attempt has all the time, see core/patience.py
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
        self._loop = asyncio.get_running_loop()
        self._heads = Heads()
        self._refusals = Refusals()
        self._seldom = Seldom(TELL_EVERY, TELL_MOST)
        self._udp_idle = 60.0  # s, see `rest`
        self._pumps: set[StreamPump | DatagramPump] = set()
        self._rng = random.Random()
        self._outcomes = Outcomes(counters, log)
        self._kept: dict[int, _Leaving] = {}
        self._routes: WeakValueDictionary[int, Route] = WeakValueDictionary()
        self._last = 0  # number that was given to a route or a client

    @property
    def crowded(self) -> bool:
        """Clients come faster than they can be sent on: those who are not accepted yet had better wait."""
        return self._attach.crowded

    def route(self, want: Wanted) -> Route:
        self._last += 1
        balancer = Balancer(self._node, want.traffic, self._outcomes.rtts, self._rng, self._outcomes.relayed)
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
        leaving = _Leaving(client, address, route, self._loop.time(), head, datagrams, manners=manners)
        if route.balancer.traffic.asks and route.network == "tcp" and len(route) > 1 and manners is None:
            self._heads.read(client, head, partial(self._headed, leaving))
        else:
            self._choose(leaving)

    @property
    def wants_rtts(self) -> bool:
        """Somebody's clients go where the path is short."""
        return any(route.balancer.traffic.strategy == "least-latency" for route in self._routes.values())

    def measured(self, rtts: Mapping[str, float]) -> None:
        """Round trips to nodes, in seconds, as the paths in use now have them."""
        self._outcomes.measured(rtts)

    def settle(self, outcome: Outcome, given: socket.socket | None = None) -> None:
        """The tunnel's word on a client that was kept, on one that it watches, or on one that it has `given` back."""
        leaving = self._kept.pop(outcome.number, None)
        if leaving is None:
            if not self._outcomes.heard(outcome):
                self._given(outcome, given)
            return
        use = leaving.use
        assert use is not None
        if not outcome.accepted:
            leaving.head = outcome.head
            self._failed(leaving, outcome.reason, outcome.why)
            return
        leaving.client.close()  # the tunnel has its own
        self._settled(leaving)
        self._outcomes.worked(use)
        self._outcomes.reached(use, outcome)
        if use.counted:
            self._outcomes.watch(outcome.number, use)

    def _given(self, outcome: Outcome, client: socket.socket | None) -> None:
        """Back from its only attempt; None: the tunnel could not but reset it."""
        route = self._routes.get(outcome.number)
        if client is not None and route is not None:
            self._refuse(_Leaving(client, ("", 0), route, self._loop.time(), outcome.head), outcome.reason, outcome.why)
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
        self._outcomes.lost()

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
        backend = leaving.route.balancer.pick(leaving.address[0], time.monotonic(), (), leaving.key)
        if leaving.route.network == "tcp" and (len(leaving.route) > 1 or leaving.manners is not None):
            leaving.span = telemetry.start_span(
                "proxy.accept", service=leaving.route.service, client=join(leaving.address[0], leaving.address[1])
            )
        if backend is None:
            self._refuse(leaving, errors.NO_ENDPOINT, f"{leaving.route.label} has no ready endpoint on a known node")
        else:
            self._try(leaving, backend)

    def _try(self, leaving: _Leaving, backend: Backend, *, last: bool = False) -> None:
        """`last`: there will be no other attempt."""
        route = leaving.route
        leaving.use = Use.begin(route, backend)
        leaving.tried = (*leaving.tried, backend)
        leaving.whole = last or route.whole(leaving.tried, time.monotonic())
        if backend.node != self._node:
            if route.network == "tcp":
                self._hand_over(leaving, leaving.use)
            else:
                self._hand_over_flow(leaving, leaving.use)
        elif 2 * len(self._pumps) >= descriptors.room():
            self._refuse(leaving, errors.LIMIT, "too many connections stay on this node already")
        else:
            seconds = patience(route.balancer.traffic.connect, others=not leaving.whole)
            arrived = partial(self._arrived, leaving, leaving.use)
            self._dialer.dial(route.network, backend.ip, backend.port, arrived, seconds)

    def _hand_over(self, leaving: _Leaving, use: Use) -> None:
        """To the tunnel, over TCP."""
        route = leaving.route
        source = join(leaving.address[0], leaving.address[1])
        keep = (len(route) > 1 or leaving.manners is not None) and len(self._kept) < MAX_KEPT
        if leaving.manners is not None and not keep:
            self._refuse(leaving, errors.LIMIT, f"{MAX_KEPT} clients wait for a backend already")
            return
        opening = route.opening(use.backend)
        if not keep:
            use.end()  # nothing more will be heard of it
            with telemetry.span("proxy.accept", service=route.service, node=use.backend.node, client=source) as span:
                header = opening.encode(source, span.traceparent, leaving.head)
                self._attach.give(header, leaving.client, partial(self._missed, leaving))
            return
        self._last += 1
        self._kept[self._last] = leaving
        header = opening.encode_kept(
            self._last,
            source,
            leaving.span.traceparent if leaving.span is not None else "",
            leaving.head,
            self._patience(leaving),
            watch=use.counted,
            welcome=leaving.manners.welcome if leaving.manners is not None else b"",
        )
        self._attach.give(header, leaving.client, partial(self._dropped, self._last), keep=True)

    def _hand_over_flow(self, leaving: _Leaving, use: Use) -> None:
        route, number = leaving.route, 0
        if len(route) > 1 and not self._outcomes.full:
            self._last += 1
            number = self._last
            self._outcomes.watch(number, use)
        else:
            use.end()
        source = join(leaving.address[0], leaving.address[1])
        with telemetry.span("proxy.accept", service=route.service, node=use.backend.node, client=source) as span:
            header = route.opening(use.backend).encode_flow(
                number, source, span.traceparent, leaving.datagrams, self._patience(leaving)
            )
            self._attach.give(header, leaving.client, partial(self._unsent, number, leaving))

    @staticmethod
    def _patience(leaving: _Leaving) -> float:
        """Seconds for a path to the node; 0: as long as the tunnel likes, since there is no other one."""
        return patience(CONNECT, others=not leaving.whole) if len(leaving.route) > 1 else 0.0

    def _arrived(self, leaving: _Leaving, use: Use, sock: socket.socket | None, reason: str, why: str) -> None:
        """A backend on this node answered, or did not."""
        route = leaving.route
        if sock is None:
            self._failed(leaving, reason, why)
            return
        self._counters.dialled[route.service] += 1
        leaving.client.setblocking(False)
        meter, ended = Meter(self._counters.local[route.service], leaving.came), partial(self._pumped, use)
        if route.network == "tcp":
            self._settled(leaving)
            self._outcomes.worked(use)
            welcome = leaving.manners.welcome if leaving.manners is not None else b""
            self._pumps.add(StreamPump(leaving.client, sock, ended, meter, leaving.head, welcome))
            return
        for datagram in leaving.datagrams:
            try:
                meter.count(0, sock.send(datagram), leaving.came)
            except OSError:
                break
        self._outcomes.expect(use)
        answered = partial(self._outcomes.answered, use)
        refused = partial(self._outcomes.failed, use, errors.CONNECTION_REFUSED)
        self._pumps.add(DatagramPump(leaving.client, sock, ended, meter, lambda: self._udp_idle, answered, refused))

    def _failed(self, leaving: _Leaving, reason: str, why: str) -> None:
        """Nobody has taken a byte of the client's: on to the next backend, if there is one."""
        route, use, now = leaving.route, leaving.use, time.monotonic()
        assert use is not None
        use.end()
        if route.network != "tcp" or len(route) == 1:
            self._refuse(leaving, reason, why)
            return
        gone = _was_reset(leaving.client)
        if not gone or reason in _BACKENDS_OWN:
            self._outcomes.failed(use, reason, why)
        if gone:
            leaving.client.close()  # it gave up itself
            self._settled(leaving, "the client gave up")
            return
        another = route.next(leaving.address[0], leaving.tried, leaving.key, now)
        last = another is None and not leaving.whole and reason in (errors.UNREACHABLE, errors.NO_PATH)
        if last:
            # It waited for less than it would have alone, in the hope of somebody else: one whole attempt is its due.
            another = route.balancer.pick(leaving.address[0], now, (), leaving.key)
        if another is None:
            self._refuse(leaving, reason, why)
            return
        self._counters.retried[route.service] += 1
        if leaving.span is not None:
            leaving.span.event("retry", node=another.node, error=why)
        self._try(leaving, another, last=last)

    def _unsent(self, number: int, leaving: _Leaving) -> None:
        """The tunnel stayed away for too long to take a flow."""
        self._outcomes.forget(number)
        self._missed(leaving)

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
        if leaving.use is not None:
            leaving.use.end()
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
            if not error and leaving.use is not None:
                span.set(node=leaving.use.backend.node)
            span.end(error)

    def _pumped(self, use: Use, pump: StreamPump | DatagramPump) -> None:
        self._pumps.discard(pump)
        use.end()


def _was_reset(client: socket.socket) -> bool:
    try:
        return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
    except OSError:  # one end of a pair, whose other end is the gateway's
        return False
