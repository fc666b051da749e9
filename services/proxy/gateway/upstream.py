"""Connections to the backends of service ports: one end of a pair of sockets each, whose other end goes its way as any
client's does (`Departure.send`). Those that may be used again rest here for a while."""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import h11

from services.proxy.core.balancer import Balancer
from services.proxy.core.catalog import Backend
from services.proxy.gateway.streams import Stream
from services.proxy.route import Route

MAX_HEAD = 64 * 1024  # bytes of a head
MAX_RESTING = 32  # connections of one service port
MAX_RESTING_ALL = 512
REST = 30.0  # s; most servers wait longer, so that it is we who close

Send = Callable[[socket.socket, tuple[str, int], Route], None]

# Which backend a connection reaches does not depend on who the client is.
_IMPERSONAL = frozenset({"round-robin", "random", "least-latency", "least-connections", "p2c"})

Key = tuple[str, str]


@dataclass(slots=True, eq=False)
class Upstream:
    """One connection. `used`: it has carried a request before. `among`: the backends of which it has one; which, only the
    departure knows."""

    stream: Stream
    key: Key
    among: tuple[Backend, ...] = ()
    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT, MAX_HEAD))
    once: bool = False  # its backend was chosen for the request that it carries
    used: bool = False
    heard: bool = False  # something came since the last request began
    watch: "asyncio.Task[None] | None" = None

    async def event(self) -> h11.Event | type[h11.PAUSED]:
        """The next event of the response. Raises OSError, or h11.RemoteProtocolError."""
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]
            data = await self.stream.read()
            self.heard = self.heard or bool(data)
            self.http.receive_data(data)

    async def send(self, event: h11.Event) -> None:
        """Raises OSError, or h11.LocalProtocolError for what cannot be said now."""
        await self.stream.write(*(self.http.send_with_data_passthrough(event) or ()))


class Pool:
    """Owned by the gateway: `take`, then `give` back or drop; `close` at the end."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._resting: dict[Key, deque[Upstream]] = {}
        self._count = 0
        self._watches: set[asyncio.Task[None]] = set()

    async def take(self, route: Route, client: tuple[str, int], *, again: bool) -> Upstream:
        """A connection to a backend of `route`, on behalf of the client at (ip, port). `again`: one that has been used
        will do. Raises OSError when there are no sockets left.

        A used one is taken only once there are as many as backends, and the one that has rested longest first: so
        the requests go round, as the connections did. Those that may be at a backend that has left, or is left out for
        now, are dropped.
        """
        key, usable = self._key(route, client), _usable(route.balancer)
        for one in list(self._resting.get(key, ())):
            if one.among is not usable and not set(one.among) <= set(usable):
                self._leave(one)
                one.stream.abort()
        resting = self._resting.get(key)
        if again and resting and len(resting) >= (1 if key[1] else min(len(route), MAX_RESTING)):
            upstream = resting[0]
            self._leave(upstream)
            await self._wake(upstream)
            return upstream
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._send(far, client, route)
        return Upstream(await Stream.adopt(near), key, usable, once=bool(route.balancer.traffic.asks))

    async def give(self, upstream: Upstream) -> None:
        """A request is over: the connection rests, or is closed when it cannot be used again."""
        http = upstream.http
        resting = self._resting.setdefault(upstream.key, deque())
        if (
            upstream.once
            or http.our_state is not h11.DONE
            or http.their_state is not h11.DONE
            or http.trailing_data[0]
            or len(resting) >= MAX_RESTING
            or self._count >= MAX_RESTING_ALL
        ):
            if not resting:
                del self._resting[upstream.key]
            upstream.stream.abort()
            return
        http.start_next_cycle()
        upstream.used, upstream.heard = True, False
        resting.append(upstream)
        self._count += 1
        upstream.watch = asyncio.create_task(self._rest(upstream))
        self._watches.add(upstream.watch)
        upstream.watch.add_done_callback(self._watches.discard)

    async def close(self) -> None:
        """Closes those that rest."""
        for resting in self._resting.values():
            for upstream in resting:
                upstream.stream.abort()
        self._resting.clear()
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)

    @staticmethod
    def _key(route: Route, client: tuple[str, int]) -> Key:
        traffic = route.balancer.traffic
        personal = traffic.sticky or traffic.strategy not in _IMPERSONAL
        return route.label, client[0] if personal else ""

    async def _rest(self, upstream: Upstream) -> None:
        """Until the backend ends it, or says what nobody asked for, or it has rested long enough."""
        try:
            async with asyncio.timeout(REST):
                await upstream.stream.idle()
        except (OSError, TimeoutError):
            pass
        if upstream in self._resting.get(upstream.key, ()):
            self._leave(upstream)
        upstream.stream.abort()

    def _leave(self, upstream: Upstream) -> None:
        """It rests no longer."""
        resting = self._resting[upstream.key]
        resting.remove(upstream)
        self._count -= 1
        if not resting:
            del self._resting[upstream.key]

    @staticmethod
    async def _wake(upstream: Upstream) -> None:
        if upstream.watch is not None:
            upstream.watch.cancel()
            await asyncio.gather(upstream.watch, return_exceptions=True)
            upstream.watch = None


def _usable(balancer: Balancer) -> tuple[Backend, ...]:
    """Those that a new connection may be made to now, as the balancer chooses."""
    out = balancer.health.ejected(time.monotonic()) if balancer.health else ()
    return (tuple(backend for backend in balancer.backends if backend not in out) if out else ()) or balancer.backends
