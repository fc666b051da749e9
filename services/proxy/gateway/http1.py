"""HTTP/1.1 with a client: one connection, its requests one after the other. h11 reads and writes."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

import h11

from services.proxy.core.gateway.headers import Head, Header
from services.proxy.gateway import limits
from services.proxy.gateway.exchange import Exchange, Shared, Visit
from services.proxy.gateway.message import Answer, Asked, Cut, End
from services.proxy.gateway.streams import Stream, splice
from services.proxy.gateway.upstream import MAX_HEAD, Upstream
from services.proxy.gateway.upstream1 import Http1Upstream

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class Http1:
    """One client. `run` until it is gone; the stream is closed then."""

    def __init__(self, shared: Shared, stream: Stream, visit: Visit, data: bytes = b"") -> None:
        """`data` was read of it before."""
        self._shared = shared
        self._stream = stream
        self._visit = visit
        self._http = h11.Connection(h11.SERVER, MAX_HEAD)
        if data:
            self._http.receive_data(data)
        self._linger = False  # the client may be sending what nobody will read
        self.asked = Asked(b"", b"", (), False)  # the request that is being answered

    async def run(self) -> None:
        try:
            while (asked := await self._next()) is not None:
                self.asked = asked
                await Exchange(self._shared, self._visit, self).run()
                if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    break
                self._http.start_next_cycle()
            if self._http.our_state is not h11.SWITCHED_PROTOCOL:
                self._linger = self._linger or self._http.their_state is h11.SEND_BODY
                await self._stream.close(linger=self._linger)
        except (Cut, OSError, h11.LocalProtocolError) as error:
            self._shared.log.debug("a client's connection was cut", extra={"error": repr(error)})
        finally:
            self._stream.abort()

    async def _next(self) -> Asked | None:
        """None: there are no more requests."""
        clock = asyncio.get_running_loop().time
        begun = bool(self._http.trailing_data[0])
        try:
            async with asyncio.timeout(limits.HEAD_TIME if begun else limits.KEEP_ALIVE) as limit:
                while (event := self._http.next_event()) is h11.NEED_DATA:
                    data = await self._stream.read()
                    if data and not begun:
                        begun = True
                        limit.reschedule(clock() + limits.HEAD_TIME)
                    self._http.receive_data(data)
            if not isinstance(event, h11.Request):
                return None
            if event.http_version in (b"1.0", b"1.1"):
                has_body = Head.of(event.headers).has_body
                if not has_body and self._http.their_state is h11.SEND_BODY:
                    self._http.next_event()  # its end, which comes with the head
                modern = event.http_version == b"1.1"
                return Asked(event.method, event.target, event.headers, has_body, modern)
            await self._refuse(505, "expected HTTP/1.1")
        except TimeoutError:
            if begun:
                await self._refuse(408, "the head of the request took too long")
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint, f"not HTTP: {error}")
        return None

    async def _refuse(self, status: int, text: str) -> None:
        """What came is no request."""
        self._shared.counters.requests["", f"{status // 100}xx"] += 1
        body = f"{text}\n".encode("latin-1", "replace")
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        await self.reply(Answer(status, headers), body, close=True)

    # ── of the request that is being answered ──

    async def read(self) -> bytes | End:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                async with asyncio.timeout(limits.BODY_IDLE):
                    self._http.receive_data(await self._stream.read())
        except (OSError, h11.RemoteProtocolError) as error:
            raise Cut("the request ends too soon") from error
        if isinstance(event, h11.Data):
            return event.data
        if isinstance(event, h11.EndOfMessage):
            return End(list(event.headers))
        raise Cut("the request ends too soon")

    async def begin(self, answer: Answer) -> None:
        kind = h11.Response if answer.status >= 200 else h11.InformationalResponse
        reason = answer.reason or _REASONS.get(answer.status, b"")  # HTTP/2 has none, and some clients stumble without
        await self._send(kind(status_code=answer.status, headers=answer.headers, reason=reason))
        if answer.end:
            await self.end([])

    async def write(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def end(self, trailers: list[Header]) -> None:
        await self._send(h11.EndOfMessage(headers=trailers))

    async def reply(self, answer: Answer, body: bytes, *, close: bool) -> None:
        if close or self._http.their_state is not h11.DONE:
            self._linger = True
            answer.headers.append((b"connection", b"close"))  # what the client has yet to send, nobody reads
        await self.begin(answer)
        if body:
            await self.write(body)
        await self.end([])

    async def switch(self, answer: Answer, upstream: Upstream) -> None:
        assert isinstance(upstream, Http1Upstream)  # who asks for it gets one
        await self.begin(answer)
        try:
            early, late = self._http.trailing_data[0], upstream.http.trailing_data[0]
            if early:
                await upstream.stream.write(early)
            if late:
                await self._stream.write(late)
        except OSError as error:
            raise Cut("ended while it switched") from error
        await splice(self._stream, upstream.stream)

    def on_lost(self, call: Callable[[], None] | None) -> None:
        self._stream.on_lost(call)

    async def _send(self, event: h11.Event) -> None:
        try:
            await self._stream.write(*(self._http.send_with_data_passthrough(event) or ()), patience=limits.STALL)
        except OSError as error:
            raise Cut("the client went away, or reads no more") from error
