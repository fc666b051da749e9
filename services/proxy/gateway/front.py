"""What becomes of a client of a gateway: its TLS hello is looked at, then it goes its way, or is talked to."""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable

from services.proxy.core import clienthello
from services.proxy.core.clienthello import Incomplete, NotTls
from services.proxy.core.gateway.table import Entry, Served
from services.proxy.core.request import PREFACE
from services.proxy.departure import Departure
from services.proxy.gateway import limits
from services.proxy.gateway.certificates import Certificates
from services.proxy.gateway.exchange import Shared, Visit
from services.proxy.gateway.http1 import Http1
from services.proxy.gateway.streams import HANDSHAKE, Stream, splice
from services.proxy.route import Route
from services.runtime.sockets import reset

MAX_CLIENTS = 4096  # that are talked to at once; each holds two descriptors and up to 0.5 MiB while it is busy (HTTP/2: for each stream)
MAX_EACH = 1024  # of one address

# Alerts (RFC 8446, 6): what a client is told that asks for a name we do not have, or have no certificate for.
_UNKNOWN_NAME = bytes((21, 3, 3, 0, 2, 2, 112))
_NO_CERTIFICATE = bytes((21, 3, 3, 0, 2, 2, 80))

# Reasons in causeway_proxy_refused_total.
LIMIT, TLS, NO_ROUTE = "limit", "tls", "no_route"


class Front:
    """Takes the clients of every port. Owns their tasks until `close`."""

    def __init__(self, shared: Shared, departure: Departure, certificates: Certificates) -> None:
        self._shared = shared
        self._departure = departure
        self._certificates = certificates
        self._tasks: set[asyncio.Task[None]] = set()
        self._each: Counter[str] = Counter()
        self.entries: dict[int, Entry] = {}
        self.closing = False  # who comes now is not talked to

    def __len__(self) -> int:
        """Clients that are talked to."""
        return len(self._tasks)

    def send(self, client: socket.socket, address: tuple[str, int], entry: Entry, /) -> None:
        """Owns `client` from now on."""
        address = address[:2]
        if entry.kind == "tcp":
            self._hand_over(client, address, entry.find(""), "")
            return
        if self.closing or len(self._tasks) >= MAX_CLIENTS or self._each[address[0]] >= MAX_EACH:
            self._refuse(client, entry, LIMIT)
            return
        self._each[address[0]] += 1
        task = asyncio.create_task(self._meet(client, address, entry))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._left(task, address[0]))

    async def close(self) -> None:
        """Ends all that is talked."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _left(self, task: "asyncio.Task[None]", ip: str) -> None:
        self._tasks.discard(task)
        self._each[ip] -= 1
        if not self._each[ip]:
            del self._each[ip]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._shared.log.error("a client's task failed", extra={"error": repr(error)}, exc_info=error)

    async def _meet(self, client: socket.socket, address: tuple[str, int], entry: Entry) -> None:
        sni = ""
        context = None
        try:
            client.setblocking(False)
            if entry.kind == "tls":
                async with asyncio.timeout(HANDSHAKE):
                    sni = await _server_name(client)
            served = entry.find(sni)
            if served is None:
                self._refuse(client, entry, TLS, _UNKNOWN_NAME)
                return
            if served.passes:
                self._hand_over(client, address, served, sni)
                return
            if served.server.tls is not None and (context := self._certificates.get(served.server.tls)) is None:
                self._refuse(client, entry, TLS, _NO_CERTIFICATE)
                return
            stream = await Stream.adopt(client, context)
        except (OSError, TimeoutError, NotTls) as error:
            self._shared.log.debug("no TLS with a client", extra={"address": address[0], "error": repr(error)})
            self._refuse(client, entry, TLS)
            return
        except BaseException:
            client.close()
            raise
        if served.speaks_http:
            visit = Visit(address, entry.port, "https" if context else "http", sni, self._finder(entry, sni))
            await self._talk(stream, visit)
        else:
            await self._pass_on(stream, address, served, sni)

    async def _talk(self, stream: Stream, visit: Visit) -> None:
        """In the HTTP that TLS agreed on, or that the client begins with."""
        data = b""
        try:
            async with asyncio.timeout(limits.KEEP_ALIVE):
                while not stream.alpn and len(data) < len(PREFACE) and PREFACE.startswith(data):
                    data += (more := await stream.read())
                    if not more:
                        break
        except (OSError, TimeoutError):
            await stream.close()
            return
        except BaseException:
            stream.abort()
            raise
        if stream.alpn == "h2" or data.startswith(PREFACE):
            from services.proxy.gateway.http2 import Http2  # only gateways need the library, see Gateway.run

            await Http2(self._shared, stream, visit, data).run()
        else:
            await Http1(self._shared, stream, visit, data).run()

    def _finder(self, entry: Entry, sni: str) -> Callable[[], Served | None]:
        """What is served there at the time of each request: connections outlive changes."""

        def find() -> Served | None:
            now = self.entries.get(entry.port)
            return now.find(sni) if now is not None else None

        return find

    def _hand_over(self, client: socket.socket, address: tuple[str, int], served: Served | None, sni: str) -> None:
        """The client itself goes on its way; nothing of it was read."""
        route = self._route(served, sni)
        if route is None:
            self._shared.counters.refused_local["", NO_ROUTE] += 1
            reset(client)
        else:
            self._departure.send(client, address, route)

    async def _pass_on(self, stream: Stream, address: tuple[str, int], served: Served, sni: str) -> None:
        """What was in TLS, out of it."""
        try:
            route = self._route(served, sni)
            if route is None:
                self._shared.counters.refused_local["", NO_ROUTE] += 1
                return
            upstream = await self._shared.pool.take(route, address, again=False, two=False)
            await splice(stream, upstream.stream)
        except OSError:
            pass
        finally:
            stream.abort()

    def _route(self, served: Served | None, sni: str) -> Route | None:
        streams = served.streams.find(sni) if served is not None else None
        if streams is None or streams.spread is None:
            return None
        return self._shared.resolve(streams.spread.pick(self._shared.rng.random()))

    def _refuse(self, client: socket.socket, entry: Entry, reason: str, alert: bytes = b"") -> None:
        self._shared.counters.refused_local[entry.label, reason] += 1
        if not alert:
            reset(client)
            return
        try:
            client.recv(clienthello.MAX_HELLO)  # unread it would turn the alert into a reset
            client.send(alert)
        except OSError:
            pass
        client.close()


async def _server_name(client: socket.socket) -> str:
    """The name in a TLS hello, which stays unread. Raises NotTls, or OSError."""
    needed = 5
    try:
        while True:
            # The kernel wakes us when so much is there; what is unread would else wake us without end.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, needed)
            await _readable(client)
            data = client.recv(clienthello.MAX_HELLO, socket.MSG_PEEK)
            if len(data) < needed:
                raise NotTls("the client ended before its hello did")
            try:
                return clienthello.server_name(data)
            except Incomplete as more:
                needed = more.needed
    finally:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)
