"""Connections to the backends of service ports: one end of a pair of sockets each, whose other end goes its way as any
client's does (`Departure.send`). Those that may be used again rest here for a while.

Each carries one request at a time, in HTTP/2, too: so the requests go round, a backend that fails takes nobody else's
along, and how much waits for a slow client is bounded for each request by itself.
"""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable

from services.proxy.core.balancer import Balancer
from services.proxy.core.catalog import Backend
from services.proxy.gateway.streams import Stream
from services.proxy.gateway.upstream import Upstream
from services.proxy.gateway.upstream1 import Http1Upstream
from services.proxy.route import Route

MAX_RESTING = 32  # connections of one service port
MAX_RESTING_ALL = 512
REST = 30.0  # s; most servers wait longer, so that it is we who close

Send = Callable[[socket.socket, tuple[str, int], Route], None]

# Which backend a connection reaches does not depend on who the client is.
_IMPERSONAL = frozenset({"round-robin", "random", "least-latency", "least-connections", "p2c"})

Key = tuple[str, str, bool]  # the route, the client where it matters, and whether it is HTTP/2


class Pool:
    """Owned by the gateway: `take`, then `give` back or drop; `close` at the end."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._resting: dict[Key, deque[Upstream]] = {}
        self._count = 0
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self, route: Route, client: tuple[str, int], *, again: bool, two: bool) -> Upstream:
        """A connection to a backend of `route`, on behalf of the client at (ip, port). `again`: one that has been used
        will do. `two`: of HTTP/2. Raises OSError when there are no sockets left.

        A used one is taken only once there are as many as backends, and the one that has rested longest first: so
        the requests go round, as the connections did. Those that may be at a backend that has left, or is left out for
        now, are dropped.
        """
        key, usable = self._key(route, client, two), _usable(route.balancer)
        for one in list(self._resting.get(key, ())):
            if one.among is not usable and not set(one.among) <= set(usable):
                self._leave(one)
                one.abort()
        resting = self._resting.get(key)
        if again and resting and len(resting) >= (1 if key[1] else min(len(route), MAX_RESTING)):
            upstream = resting[0]
            self._leave(upstream)
            try:
                await self._wake(upstream)
            except BaseException:
                upstream.abort()
                raise
            return upstream
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._send(far, client, route)
        upstream = _kind(two)(await Stream.adopt(near), key, usable, once=bool(route.balancer.traffic.asks))
        if (task := upstream.start()) is not None:
            self._own(task)
        return upstream

    def give(self, upstream: Upstream) -> None:
        """A request is over, or is no longer wanted: the connection rests, or is closed when it cannot be used again."""
        resting = self._resting.get(upstream.key, ())
        if (
            not upstream.renew()
            or upstream.once
            or self._closed
            or len(resting) >= MAX_RESTING
            or self._count >= MAX_RESTING_ALL
        ):
            upstream.abort()
            return
        upstream.used, upstream.heard = True, False
        self._resting.setdefault(upstream.key, deque()).append(upstream)
        self._count += 1
        upstream.watch = self._own(asyncio.create_task(self._rest(upstream)))

    async def close(self) -> None:
        """Closes those that rest."""
        self._closed = True
        for resting in self._resting.values():
            for upstream in resting:
                upstream.abort()
        self._resting.clear()
        for watch in self._tasks:
            watch.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _own(self, task: "asyncio.Task[None]") -> "asyncio.Task[None]":
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @staticmethod
    def _key(route: Route, client: tuple[str, int], two: bool) -> Key:
        traffic = route.balancer.traffic
        personal = traffic.sticky or traffic.strategy not in _IMPERSONAL
        return route.label, client[0] if personal else "", two

    async def _rest(self, upstream: Upstream) -> None:
        """Until the backend ends it, or says what nobody asked for, or it has rested long enough."""
        try:
            async with asyncio.timeout(REST):
                await upstream.idle()
        except (OSError, TimeoutError):
            pass
        if upstream in self._resting.get(upstream.key, ()):
            self._leave(upstream)
        upstream.abort()

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


def _kind(two: bool) -> type[Upstream]:
    if not two:
        return Http1Upstream
    from services.proxy.gateway.upstream2 import Http2Upstream  # only gateways need the library, see Gateway.run

    return Http2Upstream
