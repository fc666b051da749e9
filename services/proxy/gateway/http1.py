"""HTTP/1.1 between a client and backends: one client connection, its requests one after the other.

h11 reads and writes both sides, so what a backend gets was parsed and written anew: two readings of one request are not
to be had. Nothing is ever held whole; a body waits where its slower side is.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from logging import Logger

import h11

from services.proxy.core.gateway import paths
from services.proxy.core.gateway.headers import Head, Header, HeaderError, for_backend, for_client, trailers
from services.proxy.core.gateway.hosts import host_of
from services.proxy.core.gateway.model import Destination
from services.proxy.core.gateway.paths import Target, TargetError
from services.proxy.core.gateway.table import Answered, Forward, Moved, Request, Served, choose
from services.proxy.counters import Counters
from services.proxy.gateway.streams import Stream, splice
from services.proxy.gateway.upstream import MAX_HEAD, Pool, Upstream
from services.proxy.route import Route

HEAD_TIME = 15.0  # s for a request's head, from its first byte: slower clients only hold a place
KEEP_ALIVE = 75.0  # s until the next request begins
BODY_IDLE = 60.0  # s without a byte of a request's body
STALL = 120.0  # s in which a client takes nothing of an answer
ANSWER_IDLE = 300.0  # s without a byte of an answer; Envoy's stream_idle_timeout

# RFC 9110, 6.4.1: answers that have no body, whatever is said of it.
_BODILESS = frozenset({204, 304})
# RFC 9110, 9.2.2: may be sent twice.
_REPEATABLE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})
# CONNECT would make a gateway dial what the client names; TRACE shows a client's secrets to its scripts.
_REFUSED = frozenset({b"CONNECT", b"TRACE"})


class Refused(Exception):
    """We answer ourselves: `status`, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Stale(Exception):
    """A connection that had rested was over before it carried anything: another one may do."""


class _Cut(Exception):
    """The client is gone, or has half an answer: its connection can only be cut."""


@dataclass(slots=True)
class Shared:
    """What all connections of a gateway use."""

    pool: Pool
    resolve: Callable[[Destination], Route | None]
    counters: Counters
    rng: random.Random
    log: Logger


@dataclass(frozen=True, slots=True)
class Visit:
    """Who came, and where. `find`: what is served there now; `sni` as TLS said it, "" without."""

    address: tuple[str, int]
    port: int
    scheme: str
    sni: str
    find: Callable[[], Served | None]


class Http1:
    """One client. `run` until it is gone; the stream is closed then."""

    def __init__(self, shared: Shared, stream: Stream, visit: Visit) -> None:
        self._shared = shared
        self._stream = stream
        self._visit = visit
        self._http = h11.Connection(h11.SERVER, MAX_HEAD)
        self._begun = False  # the client has the head of the answer, or a part of it
        self._gone = False  # the client went away, or is too slow
        self._linger = False  # the client may be sending what nobody will read
        self._limit: asyncio.Timeout | None = None

    async def run(self) -> None:
        try:
            while (request := await self._next_request()) is not None:
                await self._answer(request)
                if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    break
                self._http.start_next_cycle()
            if self._http.our_state is not h11.SWITCHED_PROTOCOL:
                self._linger = self._linger or self._http.their_state is h11.SEND_BODY
                await self._stream.close(linger=self._linger)
        except (_Cut, OSError, h11.LocalProtocolError) as error:
            self._shared.log.debug("a client's connection was cut", extra={"error": repr(error)})
        finally:
            self._stream.abort()

    # ── requests ──

    async def _next_request(self) -> h11.Request | None:
        """None: there are no more."""
        clock = asyncio.get_running_loop().time
        begun = bool(self._http.trailing_data[0])
        try:
            async with asyncio.timeout(HEAD_TIME if begun else KEEP_ALIVE) as limit:
                while True:
                    event = self._http.next_event()
                    if event is not h11.NEED_DATA:
                        return event if isinstance(event, h11.Request) else None
                    data = await self._stream.read()
                    if data and not begun:
                        begun = True
                        limit.reschedule(clock() + HEAD_TIME)
                    self._http.receive_data(data)
        except TimeoutError:
            if begun:
                await self._say("", 408, "the head of the request took too long")
        except h11.RemoteProtocolError as error:
            await self._say("", error.error_status_hint, f"not HTTP: {error}")
        return None

    async def _answer(self, request: h11.Request) -> None:
        visit = self._visit
        self._begun, head_only = False, request.method == b"HEAD"
        head = Head.of(request.headers)
        try:
            target = _judge(request, head)
        except Refused as refusal:
            await self._say("", refusal.status, str(refusal), head_only=head_only, close=True)
            return
        authority = target.authority or head.first(b"host")
        served = visit.find()
        asked = Request(request.method.decode("ascii"), target, authority, visit.scheme, visit.port, head.as_text)
        answer = choose(served, asked, self._shared.rng.random()) if served is not None else None
        if isinstance(answer, Moved):
            where = (b"location", answer.location.encode("latin-1"))
            await self._say(answer.label, answer.code, f"it is at {answer.location}", where, head_only=head_only)
        elif isinstance(answer, Answered):
            await self._reply(answer.label, answer.status, answer.body, head_only=head_only)
        elif answer is not None:
            await self._forward(request, head, answer, authority)
        elif visit.sni and host_of(authority) != visit.sni:
            await self._say("", 421, "this connection is for another host", head_only=head_only)
        else:
            await self._say("", 404, "no route", head_only=head_only)

    async def _say(
        self, label: str, status: int, text: str, *headers: Header, head_only: bool = False, close: bool = False
    ) -> None:
        """An answer of our own, of one line."""
        body = f"{text}\n".encode("latin-1", "replace")
        await self._reply(label, status, body, *headers, head_only=head_only, close=close)

    async def _reply(
        self, label: str, status: int, body: bytes, *headers: Header, head_only: bool = False, close: bool = False
    ) -> None:
        """An answer that no backend is asked for."""
        fields = list(headers)
        if status in _BODILESS:
            body = b""
        else:
            fields += [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        if self._http.their_state is h11.SEND_BODY:
            try:
                self._http.next_event()  # the end, where there is no body
            except h11.RemoteProtocolError:
                pass
        if close or self._http.their_state is not h11.DONE:
            self._linger = True
            fields.append((b"connection", b"close"))  # what the client has yet to send, nobody reads
        self._count(label, status)
        await self._send(h11.Response(status_code=status, headers=fields))
        if body and not head_only:
            await self._send(h11.Data(data=body))
        await self._send(h11.EndOfMessage())

    def _count(self, label: str, status: int) -> None:
        self._shared.counters.requests[label, f"{status // 100}xx"] += 1

    async def _send(self, event: h11.Event) -> None:
        try:
            await self._stream.write(*(self._http.send_with_data_passthrough(event) or ()), patience=STALL)
        except OSError as error:
            raise _Cut("the client went away, or reads no more") from error

    # ── backends ──

    async def _forward(self, request: h11.Request, head: Head, way: Forward, authority: str) -> None:
        try:
            async with asyncio.timeout(way.timeout or None) as self._limit:
                await self._try(request, head, way, authority)
            return
        except Refused as error:
            status, why = error.status, str(error)
        except TimeoutError:
            status, why = 504, f"no answer from {way.destination} in time"
        self._shared.log.debug("no answer for a client", extra={"target": str(way.destination), "error": why})
        if self._begun or self._gone:
            raise _Cut(why)
        await self._say(way.label, status, why, head_only=request.method == b"HEAD")

    async def _try(self, request: h11.Request, head: Head, way: Forward, authority: str) -> None:
        """On a connection that was used before, where a second attempt does no harm, else on a new one."""
        route = self._shared.resolve(way.destination)
        if route is None:
            raise Refused(503, f"there is no service {way.destination}")
        if not len(route):
            raise Refused(503, f"no endpoint of {way.destination} is ready")
        again = request.method in _REPEATABLE and not head.has_body and not head.upgrade
        while True:
            try:
                upstream = await self._shared.pool.take(route, self._visit.address, again=again)
            except OSError as error:
                raise Refused(503, f"no more connections: {error.strerror}") from error
            try:
                await self._exchange(upstream, request, head, way, authority)
                return
            except _Stale:
                again = False

    async def _exchange(
        self, upstream: Upstream, request: h11.Request, head: Head, way: Forward, authority: str
    ) -> None:
        """One request and its answer on one connection."""
        visit = self._visit
        self._stream.on_lost(upstream.stream.abort)
        upload: asyncio.Task[None] | None = None
        try:
            headers = for_backend(head, visit.address[0], visit.scheme, authority, way.authority or authority)
            sent = h11.Request(method=request.method, target=way.target.encode("latin-1"), headers=headers)
            await _tell(upstream, sent)
            if head.has_body:
                upload = asyncio.create_task(self._upload(upstream))
            else:
                if self._http.their_state is h11.SEND_BODY:
                    self._http.next_event()  # its end, which comes with the head
                await _tell(upstream, h11.EndOfMessage())
            await self._download(upstream, request, head, way)
            if upload is None or (upload.done() and not upload.cancelled()):
                await self._shared.pool.give(upstream)
                return
            upstream.stream.abort()
        except BaseException:
            upstream.stream.abort()
            raise
        finally:
            self._stream.on_lost(None)
            if upload is not None:
                upload.cancel()
                await asyncio.gather(upload, return_exceptions=True)

    async def _upload(self, upstream: Upstream) -> None:
        """The body of the request, as it comes. What goes wrong is for `_download` to see: an answer may be there."""
        try:
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    async with asyncio.timeout(BODY_IDLE):
                        self._http.receive_data(await self._stream.read())
                elif isinstance(event, h11.Data):
                    await upstream.send(event)
                elif isinstance(event, h11.EndOfMessage):
                    await upstream.send(h11.EndOfMessage(headers=trailers(event.headers)))
                    return
                else:
                    raise h11.RemoteProtocolError("the request ends too soon")
        except (TimeoutError, h11.RemoteProtocolError):
            self._gone = True
            upstream.stream.abort()
        except (OSError, h11.LocalProtocolError):
            return

    async def _download(self, upstream: Upstream, request: h11.Request, head: Head, way: Forward) -> None:
        """The answer, as it comes."""
        modern = request.http_version >= b"1.1"
        while not isinstance(event := await self._hear(upstream, way), h11.Response):
            if not isinstance(event, h11.InformationalResponse):
                raise self._failure(upstream, way)
            if event.status_code == 101:
                await self._switch(upstream, event, head, way)
                return
            if modern:
                headers = for_client(event.headers)
                await self._send(h11.InformationalResponse(status_code=event.status_code, headers=headers))
        self._begun = True
        self._count(way.label, event.status_code)
        headers = for_client(event.headers)
        await self._send(h11.Response(status_code=event.status_code, headers=headers, reason=event.reason))
        while isinstance(part := await self._hear(upstream, way), h11.Data):
            await self._send(part)
        if not isinstance(part, h11.EndOfMessage):
            raise self._failure(upstream, way)
        tail = trailers(part.headers) if modern and request.method != b"HEAD" else []
        await self._send(h11.EndOfMessage(headers=tail))

    async def _switch(self, upstream: Upstream, event: h11.InformationalResponse, head: Head, way: Forward) -> None:
        """It is no longer HTTP (a WebSocket): from now on bytes are only copied."""
        self._begun = True
        self._count(way.label, 101)
        if self._limit is not None:
            self._limit.reschedule(None)
        headers = for_client(event.headers, upgraded=True)
        await self._send(h11.InformationalResponse(status_code=101, headers=headers, reason=event.reason))
        try:
            early, answer = self._http.trailing_data[0], upstream.http.trailing_data[0]
            if early:
                await upstream.stream.write(early)
            if answer:
                await self._stream.write(answer)
        except OSError as error:
            raise _Cut("ended while it switched") from error
        await splice(self._stream, upstream.stream)

    async def _hear(self, upstream: Upstream, way: Forward) -> object:
        """The next event of the answer."""
        try:
            async with asyncio.timeout(ANSWER_IDLE):
                return await upstream.event()
        except TimeoutError:
            raise Refused(504, f"no answer from {way.destination} in time") from None
        except (OSError, h11.RemoteProtocolError) as error:
            raise self._failure(upstream, way) from error

    @staticmethod
    def _failure(upstream: Upstream, way: Forward) -> Exception:
        if upstream.used and not upstream.heard:
            return _Stale()
        what = "did not speak HTTP to the end" if upstream.heard else "ended the connection without an answer"
        return Refused(502, f"{way.destination} {what}")


def _judge(request: h11.Request, head: Head) -> Target:
    """The target of a request that may be handed on. Raises Refused; who sent it had better start anew."""
    if sum(len(name) + len(value) for name, value in request.headers) > MAX_HEAD:
        raise Refused(431, "the head of the request is too large")
    if request.http_version not in (b"1.0", b"1.1"):
        raise Refused(505, "expected HTTP/1.1")
    if request.method in _REFUSED:
        raise Refused(405, "this method is not served")
    try:
        head.check()
        target = paths.read(request.target.decode("latin-1"))
        paths.check_authority(target.authority or head.first(b"host"))
        return target
    except (HeaderError, TargetError) as error:
        raise Refused(400, str(error)) from None


async def _tell(upstream: Upstream, event: h11.Event) -> None:
    """A backend that takes no more may have answered nevertheless: its answer tells."""
    try:
        await upstream.send(event)
    except OSError:
        pass
