"""One request at a gateway: where it goes, and its answer on the way back. Which HTTP either side speaks is theirs to
know (http1.py and http2.py, upstream.py and upstream2.py).

What a backend gets was parsed and written anew: two readings of one request are not to be had. Nothing is ever held
whole; a body waits where its slower side is.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from logging import Logger

from services.proxy.core.gateway import grpc, paths
from services.proxy.core.gateway.headers import Head, Header, HeaderError, for_backend, for_client, trailers
from services.proxy.core.gateway.hosts import host_of
from services.proxy.core.gateway.model import Destination
from services.proxy.core.gateway.paths import Target, TargetError
from services.proxy.core.gateway.table import Answered, Forward, Moved, Request, Served, choose
from services.proxy.counters import Counters
from services.proxy.gateway import limits
from services.proxy.gateway.message import INTERNAL_ERROR, REFUSED_STREAM, Answer, Asked, Client, Cut, End
from services.proxy.gateway.pool import Pool
from services.proxy.gateway.upstream import MAX_HEAD, Garbled, Upstream
from services.proxy.route import Route

MAX_TEXT = 1024  # bytes of an answer that are told to a client of gRPC

# RFC 9110, 6.4.1: answers that have no body, whatever is said of it.
_BODILESS = frozenset({204, 304})
# RFC 9110, 9.2.2: may be sent twice.
_REPEATABLE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})
# CONNECT would make a gateway dial what the client names; TRACE shows a client's secrets to its scripts.
_REFUSED = frozenset({b"CONNECT", b"TRACE"})


class Refused(Exception):
    """We answer ourselves: `status`, and why. `code`: of HTTP/2, where it is too late for an answer."""

    def __init__(self, status: int, why: str, code: int = INTERNAL_ERROR) -> None:
        super().__init__(why)
        self.status = status
        self.code = code


class _Stale(Exception):
    """The connection was over before its backend took anything of the request: another one may do."""


@dataclass(slots=True)
class Shared:
    """What all connections of a gateway use."""

    pool: Pool
    resolve: Callable[[Destination], Route | None]
    counters: Counters
    rng: random.Random
    log: Logger
    busy: int = 0  # streams of HTTP/2
    each: Counter[str] = field(default_factory=Counter)  # of them, by the client's address


@dataclass(frozen=True, slots=True)
class Visit:
    """Who came, and where. `find`: what is served there now; `sni` as TLS said it, "" without."""

    address: tuple[str, int]
    port: int
    scheme: str
    sni: str
    find: Callable[[], Served | None]


class Exchange:
    """`run` it once. Raises Cut."""

    def __init__(self, shared: Shared, visit: Visit, client: Client) -> None:
        self._shared = shared
        self._visit = visit
        self._client = client
        self._asked = client.asked
        self._head = Head.of(client.asked.headers)
        self._grpc = grpc.named(self._head.first(b"content-type"))
        self._begun = False  # the client has the head of the answer, or a part of it
        self._gone = False  # the client went away, or is too slow
        self._taken = False  # a part of its body was read, and is not to be had again
        self._limit: asyncio.Timeout | None = None  # of the route
        self._idle: asyncio.Timeout | None = None  # until the next of the answer

    async def run(self) -> None:
        visit, asked = self._visit, self._asked
        try:
            target = self._judge()
        except Refused as refusal:
            await self._say("", refusal.status, str(refusal), close=True)
            return
        authority = target.authority or self._head.first(b"host")
        served = visit.find()
        request = Request(
            asked.method.decode("latin-1"), target, authority, visit.scheme, visit.port, self._head.as_text
        )
        answer = choose(served, request, self._shared.rng.random()) if served is not None else None
        if isinstance(answer, Moved):
            where = (b"location", answer.location.encode("latin-1"))
            await self._say(answer.label, answer.code, f"it is at {answer.location}", where)
        elif isinstance(answer, Answered):
            await self._reply(answer.label, answer.status, answer.body)
        elif answer is not None:
            await self._forward(answer, authority)
        elif visit.sni and host_of(authority) != visit.sni:
            await self._say("", 421, "this connection is for another host")
        else:
            await self._say("", 404, "no route")

    def _judge(self) -> Target:
        """The target of a request that may be handed on. Raises Refused; who sent it had better start anew."""
        asked = self._asked
        if sum(len(name) + len(value) for name, value in asked.headers) > MAX_HEAD:
            raise Refused(431, "the head of the request is too large")
        if asked.method in _REFUSED:
            raise Refused(405, "this method is not served")
        try:
            self._head.check()
            target = paths.read(asked.target.decode("latin-1"))
            paths.check_authority(target.authority or self._head.first(b"host"))
            return target
        except (HeaderError, TargetError) as error:
            raise Refused(400, str(error)) from None

    # ── answers of our own ──

    async def _say(self, label: str, status: int, text: str, *headers: Header, close: bool = False) -> None:
        """One line."""
        await self._reply(label, status, f"{text}\n".encode("latin-1", "replace"), *headers, close=close)

    async def _reply(self, label: str, status: int, body: bytes, *headers: Header, close: bool = False) -> None:
        """An answer that no backend is asked for."""
        self._count(label, status)
        if status >= 400 and self._grpc:
            answer = Answer(200, grpc.refusal(status, body.decode("latin-1")))
            body = b""
        elif status in _BODILESS:
            answer, body = Answer(status, list(headers)), b""
        else:
            fields = [*headers, (b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
            answer = Answer(status, fields)
        await self._client.reply(answer, b"" if self._asked.method == b"HEAD" else body, close=close)

    def _count(self, label: str, status: int) -> None:
        self._shared.counters.requests[label, f"{status // 100}xx"] += 1

    # ── backends ──

    async def _forward(self, way: Forward, authority: str) -> None:
        code = INTERNAL_ERROR
        try:
            async with asyncio.timeout(way.timeout or None) as self._limit:
                await self._try(way, authority)
            return
        except Refused as error:
            status, why, code = error.status, str(error), error.code
        except TimeoutError:
            status, why = 504, f"no answer from {way.destination} in time"
        self._shared.log.debug("no answer for a client", extra={"target": str(way.destination), "error": why})
        # Clients of gRPC begin anew what was not touched, if they are told so.
        if self._begun or self._gone or (self._grpc and code == REFUSED_STREAM):
            raise Cut(why, code)
        await self._say(way.label, status, why)

    async def _try(self, way: Forward, authority: str) -> None:
        """On a connection that was used before, where a second attempt does no harm, else on a new one."""
        route = self._shared.resolve(way.destination)
        if route is None:
            raise Refused(503, f"there is no service {way.destination}")
        if not len(route):
            raise Refused(503, f"no endpoint of {way.destination} is ready")
        two = route.http2 and not self._head.upgrade
        again = two or (self._repeatable and not self._asked.has_body and not self._head.upgrade)
        for attempt in range(2):
            try:
                upstream = await self._shared.pool.take(
                    route, self._visit.address, again=again and not attempt, two=two
                )
            except OSError as error:
                raise Refused(503, f"no more connections: {error.strerror}") from error
            try:
                await self._exchange(upstream, way, authority)
                return
            except _Stale:
                continue
        raise Refused(502, f"{way.destination} takes no requests", REFUSED_STREAM)

    @property
    def _repeatable(self) -> bool:
        return self._asked.method in _REPEATABLE

    async def _exchange(self, upstream: Upstream, way: Forward, authority: str) -> None:
        """The request and its answer on one connection."""
        client, asked, visit = self._client, self._asked, self._visit
        client.on_lost(upstream.abort)
        upload: asyncio.Task[None] | None = None
        try:
            headers = for_backend(self._head, visit.address[0], visit.scheme, authority, way.authority or authority)
            sent = Asked(asked.method, way.target.encode("latin-1"), headers, asked.has_body)
            try:
                await upstream.ask(sent, self._head)
            except Garbled as error:
                raise (_Stale() if upstream.untouched else Refused(400, str(error))) from error
            if asked.has_body:
                upload = asyncio.create_task(self._upload(upstream))
            await self._download(upstream, way)
        finally:
            client.on_lost(None)
            if upload is not None:
                upload.cancel()
                await asyncio.gather(upload, return_exceptions=True)
            self._shared.pool.give(upstream)

    async def _upload(self, upstream: Upstream) -> None:
        """The body of the request, as it comes. What goes wrong is for `_download` to see: an answer may be there."""
        try:
            while not isinstance(part := await self._client.read(), End):
                self._taken = True
                await upstream.send(part)
                self._stir()
            await upstream.finish(trailers(part.trailers))
        except Cut:
            self._gone = True
            upstream.abort()
        except OSError:
            return

    async def _download(self, upstream: Upstream, way: Forward) -> None:
        """The answer, as it comes."""
        client, modern = self._client, self._asked.modern
        while isinstance(answer := await self._hear(upstream, way), Answer) and answer.status < 200:
            if answer.status == 101:
                await self._switch(upstream, answer, way)
                return
            if modern:
                await client.begin(Answer(answer.status, for_client(answer.headers)))
        if not isinstance(answer, Answer):
            raise self._failure(upstream, way)
        if answer.status >= 400 and self._grpc and not grpc.named(_first(answer.headers, b"content-type")):
            raise Refused(answer.status, await self._text(upstream, way, answer))  # mostly our own, of the departure
        self._begun = True
        self._count(way.label, answer.status)
        await client.begin(Answer(answer.status, for_client(answer.headers), answer.reason, answer.end))
        if answer.end:
            return
        bodiless = self._asked.method == b"HEAD" or answer.status in _BODILESS
        while not isinstance(part := await self._hear(upstream, way), Answer | End):
            if not bodiless:  # not every backend keeps to that
                await client.write(part)
        if not isinstance(part, End):
            raise self._failure(upstream, way)
        await client.end(trailers(part.trailers) if modern and not bodiless else [])

    async def _text(self, upstream: Upstream, way: Forward, answer: Answer) -> str:
        """The beginning of an answer's body."""
        text = b""
        while not answer.end and len(text) < MAX_TEXT and isinstance(part := await self._hear(upstream, way), bytes):
            text += part
        return text[:MAX_TEXT].decode("latin-1") or f"{way.destination} answers {answer.status}"

    async def _switch(self, upstream: Upstream, answer: Answer, way: Forward) -> None:
        """It is no longer HTTP (a WebSocket): from now on bytes are only copied."""
        if not self._head.upgrade:
            raise Refused(502, f"{way.destination} changed to a protocol that nobody asked for")
        self._begun = True
        self._count(way.label, 101)
        if self._limit is not None:
            self._limit.reschedule(None)
        headers = for_client(answer.headers, upgraded=True)
        await self._client.switch(Answer(101, headers, answer.reason), upstream)

    def _stir(self) -> None:
        """Something goes on, if not in the answer."""
        if self._idle is not None:
            self._idle.reschedule(asyncio.get_running_loop().time() + limits.ANSWER_IDLE)

    async def _hear(self, upstream: Upstream, way: Forward) -> Answer | bytes | End:
        """The next of the answer."""
        try:
            async with asyncio.timeout(limits.ANSWER_IDLE) as self._idle:
                return await upstream.hear()
        except TimeoutError:
            raise Refused(504, f"no answer from {way.destination} in time") from None
        except OSError as error:
            raise self._failure(upstream, way) from error
        finally:
            self._idle = None

    def _failure(self, upstream: Upstream, way: Forward) -> Exception:
        stale = upstream.used and not upstream.heard and self._repeatable
        if (stale or upstream.untouched) and not self._taken:
            return _Stale()
        what = "did not speak HTTP to the end" if upstream.heard else "ended the connection without an answer"
        return Refused(502, f"{way.destination} {what}", upstream.code)


def _first(headers: list[Header], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")
