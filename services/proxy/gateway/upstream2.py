"""HTTP/2 to a backend, which is known to speak it (RFC 9113, 3.3)."""

import asyncio
from dataclasses import dataclass, field

from h2.errors import ErrorCodes

from services.proxy.core.gateway.headers import Head as Fields
from services.proxy.core.gateway.headers import Header, pseudo
from services.proxy.gateway.link import Channel, Head, Link, Reset
from services.proxy.gateway.message import INTERNAL_ERROR, REFUSED_STREAM, Answer, Asked, End
from services.proxy.gateway.upstream import Garbled, Upstream


@dataclass(slots=True, eq=False)
class Http2Upstream(Upstream):
    """See Upstream."""

    link: Link = field(init=False)
    channel: Channel | None = None

    def start(self) -> "asyncio.Task[None]":
        self.link = Link(self.stream)
        self.link.start()
        return asyncio.create_task(self._run())

    async def ask(self, asked: Asked, head: Fields) -> None:
        self.code, self.untouched = INTERNAL_ERROR, False
        try:
            self.channel = self.link.open(
                pseudo(asked.method, asked.target, asked.headers, head), end=not asked.has_body
            )
        except OSError as error:
            self.untouched = self.link.over.is_set()
            raise Garbled(str(error)) from error

    async def send(self, data: bytes) -> None:
        await self._open.send(data)

    async def finish(self, trailers: list[Header]) -> None:
        if trailers:
            await self._open.begin(trailers, end=True)
        else:
            await self._open.send(b"", end=True)

    async def hear(self) -> Answer | bytes | End:
        try:
            part = await self._open.take()
        except Reset as error:
            self.code = error.code
            self.untouched = error.code == REFUSED_STREAM
            raise
        self.heard = True
        if not isinstance(part, Head):
            return part
        status = next((value for name, value in part.fields if name == b":status"), b"")
        if not (status.isdigit() and len(status) == 3):
            raise Garbled(f"an answer with status {status!r}, expected a number")
        fields = [(name, value) for name, value in part.fields if not name.startswith(b":")]
        return Answer(int(status), fields, end=part.end)

    def renew(self) -> bool:
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.close(int(ErrorCodes.CANCEL))
        return not self.link.over.is_set()

    async def idle(self) -> None:
        await self.link.over.wait()

    def abort(self) -> None:
        self.link.lose()
        self.stream.abort()

    @property
    def _open(self) -> Channel:
        assert self.channel is not None, "a request was begun"
        return self.channel

    async def _run(self) -> None:
        try:
            await self.link.run()
        except OSError:
            pass
        finally:
            self.stream.abort()
