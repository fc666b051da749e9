"""HTTP/2 with a client: one connection, its requests all at once."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial

from h2.errors import ErrorCodes

from services.proxy.core.gateway.headers import Header
from services.proxy.core.request import Request
from services.proxy.gateway import limits
from services.proxy.gateway.exchange import Exchange, Shared, Visit
from services.proxy.gateway.link import Channel, Head, Link
from services.proxy.gateway.message import Answer, Asked, Cut, End
from services.proxy.gateway.streams import Stream
from services.proxy.gateway.upstream import Upstream

# Streams of all clients at once, and of one address; each holds what a client of HTTP/1.1 does (front.py).
MAX_BUSY, MAX_BUSY_EACH = 4096, 1024
LIMIT = "limit"  # reason in causeway_proxy_refused_total
LEAVE = 1.0  # s without a stream until a client is left that was told to go

# RFC 9110, 5.1 and 5.5; names in lower case (RFC 9113, 8.2.1). What these hold is safe in HTTP/1.1, too.
_NAME = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
_TARGET = re.compile(rb"[!-~\x80-\xff]+")
_METHOD = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class Http2:
    """One client. `run` until it is gone; the stream is closed then."""

    def __init__(self, shared: Shared, stream: Stream, visit: Visit, data: bytes = b"") -> None:
        """`data` was read of it before."""
        self._shared = shared
        self._stream = stream
        self._visit = visit
        self._data = data
        self._link = Link(stream, self._opened)
        self._tasks: set[asyncio.Task[None]] = set()
        self._limit: asyncio.Timeout | None = None

    async def run(self) -> None:
        try:
            if await self._talk():
                await self._stream.close(linger=True)
        finally:
            self._stream.abort()

    async def _talk(self) -> bool:
        """Whether it ended as it should."""
        link = self._link
        try:
            async with asyncio.timeout(limits.KEEP_ALIVE) as self._limit:
                link.start()
                await link.run(self._data)
        except TimeoutError:
            pass
        except OSError as error:
            self._shared.log.debug("a client's connection was cut", extra={"error": repr(error)})
            return False
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            link.end()
        return True

    def _opened(self, channel: Channel, head: Head) -> None:
        shared, ip = self._shared, self._visit.address[0]
        if shared.busy >= MAX_BUSY or shared.each[ip] >= MAX_BUSY_EACH:
            shared.counters.refused_local["", LIMIT] += 1
            channel.close(int(ErrorCodes.REFUSED_STREAM))
            return
        if self._visit.find() is None:
            self._link.leave()  # the gateway is gone: it may be elsewhere
        shared.busy += 1
        shared.each[ip] += 1
        task = asyncio.create_task(self._serve(channel, head))
        channel.on_reset = task.cancel
        self._tasks.add(task)
        task.add_done_callback(partial(self._served, channel))
        self._rest(None)

    def _served(self, channel: Channel, task: "asyncio.Task[None]") -> None:
        channel.close(int(ErrorCodes.CANCEL))  # one that was taken back at once has not begun to be served
        shared, ip = self._shared, self._visit.address[0]
        shared.busy -= 1
        shared.each[ip] -= 1
        if not shared.each[ip]:
            del shared.each[ip]
        self._tasks.discard(task)
        if not self._tasks:
            self._rest(LEAVE if self._link.over.is_set() else limits.KEEP_ALIVE)
        if not task.cancelled() and (error := task.exception()) is not None:
            shared.log.error("a request failed", extra={"error": repr(error)}, exc_info=error)

    def _rest(self, seconds: float | None) -> None:
        """The client may do nothing for so long."""
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)

    async def _serve(self, channel: Channel, head: Head) -> None:
        code = int(ErrorCodes.CANCEL)
        try:
            asked = read(head)
            if asked is None:
                code = int(ErrorCodes.PROTOCOL_ERROR)
            else:
                await Exchange(self._shared, self._visit, _Client(channel, asked)).run()
                code = int(ErrorCodes.NO_ERROR)  # it has its answer: what is yet to come, nobody needs (RFC 9113, 8.1)
        except Cut as error:
            code = error.code
            self._shared.log.debug("a client's request was cut", extra={"error": repr(error)})
        finally:
            channel.close(code)


class _Client:
    """One request. See message.Client."""

    def __init__(self, channel: Channel, asked: Asked) -> None:
        self._channel = channel
        self.asked = asked

    async def read(self) -> bytes | End:
        try:
            part = await self._channel.take()
        except OSError as error:
            raise Cut("the request ends too soon") from error
        if isinstance(part, Head):
            raise Cut("a second head, expected a body")
        return part

    async def begin(self, answer: Answer) -> None:
        fields = [(b":status", b"%d" % answer.status), *answer.headers]
        await self._send(self._channel.begin(fields, end=answer.end))

    async def write(self, data: bytes) -> None:
        await self._send(self._channel.send(data))

    async def end(self, trailers: list[Header]) -> None:
        await self._send(self._channel.begin(trailers, end=True) if trailers else self._channel.send(b"", end=True))

    async def reply(self, answer: Answer, body: bytes, *, close: bool) -> None:
        """`close` is about connections with one request at a time."""
        fields = [(b":status", b"%d" % answer.status), *answer.headers]
        await self._send(self._channel.begin(fields, end=not body))
        if body:
            await self._send(self._channel.send(body, end=True))

    async def switch(self, answer: Answer, upstream: Upstream) -> None:
        raise Cut("no request of HTTP/2 asks for that")

    def on_lost(self, call: Callable[[], None] | None) -> None:
        """Its task is cancelled."""

    @staticmethod
    async def _send(sending: Awaitable[None]) -> None:
        try:
            await sending
        except OSError as error:
            raise Cut("the client went away, or reads no more") from error


def read(head: Head) -> Asked | None:
    """None: there is something in it that no request has."""
    fields = dict(head.fields)
    method, path = fields.get(b":method", b""), fields.get(b":path", b"/")
    if not _METHOD.fullmatch(method) or not _TARGET.fullmatch(path):
        return None
    for name, value in head.fields:
        if not _VALUE.fullmatch(value) or not (name.startswith(b":") or _NAME.fullmatch(name)):
            return None
    return Asked(method, path, Request.of_fields(head.fields).headers, not head.end)
