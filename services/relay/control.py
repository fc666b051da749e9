"""One control connection: TLS, greeting, then messages both ways."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol

from services.runtime.core.bucket import TokenBucket
from services.runtime.identity import Identity, Rejection
from services.runtime.tls import FramedTls, TlsError

from .core.limits import Limits
from .core.messages import Message, Reject, Welcome
from .errors import ProtocolError
from .listener import Newcomer
from .peers import decode, encode

MAX_QUEUE = 64
"""Messages that wait for a slow reader. A client that leaves so many unread is closed."""
READ_ON = MAX_QUEUE // 2
"""Answers that may wait before the client's next message is read; the rest of the queue is for what others cause."""
WRITE_TIMEOUT = 10.0
"""Seconds for one message to be taken by the client's side."""
LINGER = 1.0
"""Seconds in which a client that we reject may tell its own reason."""
BROKEN = (OSError, EOFError, TlsError, TimeoutError)
"""How a connection ends that does not end by our will."""


class Desk(Protocol):
    """What a control connection needs of the relay."""

    limits: Limits
    identity: Identity

    def greet(self, control: Control, hello: Message, proven: str) -> Message: ...

    def receive(self, control: Control, id: int, message: Message) -> None: ...  # noqa: A002

    def count(self, reason: str) -> None: ...

    def complain(self, event: str, reject: Reject, peer: str, remote: str) -> None: ...


class Control:
    """`key` names the connection; `serve` runs until it is over. `send` and `disconnect` may be called meanwhile."""

    def __init__(self, newcomer: Newcomer, desk: Desk) -> None:
        self.key = newcomer.key
        self.observed = newcomer.observed
        self.peer = ""
        self._newcomer = newcomer
        self._desk = desk
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_QUEUE)
        self._low = asyncio.Event()  # few enough messages wait
        self._low.set()
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def send(self, id: int, message: Message) -> None:  # noqa: A002
        """Queue a message. A client that does not read is disconnected."""
        try:
            self._queue.put_nowait(encode(id, message))
            if self._queue.qsize() >= READ_ON:
                self._low.clear()
        except asyncio.QueueFull:
            self.disconnect("it does not read what it is sent")

    def disconnect(self, reason: str) -> None:
        """End the connection soon."""
        if not self._over.done():
            self._over.set_result(reason)

    async def flush(self) -> None:
        """Until everything queued was sent."""
        await self._queue.join()

    async def serve(self) -> str:
        """Until the connection is over; returns why."""
        desk = self._desk
        try:
            tls = await FramedTls.start(
                self._newcomer.sock,
                desk.identity,
                server=True,
                head=self._newcomer.head,
                timeout=desk.limits.greeting_timeout,
            )
        except BROKEN as error:
            desk.count("handshake")
            return f"handshake: {error or type(error).__name__}"
        try:
            return await self._talk(tls)
        except BROKEN as error:
            return str(error) or type(error).__name__
        except ProtocolError as error:
            desk.count("bad-request")
            return str(error)
        finally:
            tls.abort()

    async def _talk(self, tls: FramedTls) -> str:
        desk = self._desk
        try:
            proven = tls.judge()
        except Rejection as rejection:
            return await self._turn_away(tls, Reject(rejection.reason, rejection.message))
        id, hello = decode(await tls.receive())  # noqa: A001
        if isinstance(hello, Reject):
            desk.count("rejected-by-client")
            desk.complain("the client rejected this relay", hello, proven, self.observed)
            return f"rejected by {proven}: {hello.reason}"
        answer = desk.greet(self, hello, proven)
        if not isinstance(answer, Welcome):
            return await self._turn_away(tls, answer, id, proven)
        self.peer = proven
        await tls.send(encode(id, answer))
        tasks = {asyncio.ensure_future(work) for work in (self._read(tls), self._write(tls), self._told())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for task, end in zip(tasks, ends, strict=True):
            if task in done:
                if isinstance(end, BaseException):
                    raise end
                return str(end)
        raise AssertionError("asyncio.wait returned with nothing done")

    async def _read(self, tls: FramedTls) -> str:
        """A client that asks too often, or does not take its answers, is read slowly: TCP then holds it back."""
        limits = self._desk.limits
        bucket = TokenBucket(limits.max_messages_per_second, limits.max_messages_burst, monotonic())
        while True:
            try:
                async with asyncio.timeout(limits.heartbeat_timeout):
                    data = await tls.receive()
            except TimeoutError:
                return f"nothing was heard for {limits.heartbeat_timeout:g} s"
            id, message = decode(data)  # noqa: A001
            if isinstance(message, Reject):
                self._desk.count("rejected-by-client")
                self._desk.complain("the client rejected this relay", message, self.peer, self.observed)
                return f"rejected by the client: {message.reason}"
            self._desk.receive(self, id, message)
            bucket.take(1, monotonic())
            if wait := bucket.wait(monotonic()):
                await asyncio.sleep(wait)
            await self._low.wait()

    async def _write(self, tls: FramedTls) -> str:
        while True:
            data = await self._queue.get()
            if self._queue.qsize() < READ_ON:
                self._low.set()
            try:
                async with asyncio.timeout(WRITE_TIMEOUT):
                    await tls.send(data)
                self._queue.task_done()
            except TimeoutError:
                return f"a message was not taken within {WRITE_TIMEOUT:g} s"

    async def _told(self) -> str:
        return await self._over

    async def _turn_away(self, tls: FramedTls, answer: Message, id: int = 0, who: str = "") -> str:  # noqa: A002
        """Say why before closing, and hear what the other side has to say: both ends then know."""
        if isinstance(answer, Reject):
            self._desk.count(answer.reason)
            self._desk.complain("client rejected", answer, who, self.observed)
        await tls.send(encode(id, answer))
        try:
            async with asyncio.timeout(LINGER):
                _, said = decode(await tls.receive())
                if isinstance(said, Reject):
                    self._desk.complain("the client rejected this relay", said, who, self.observed)
        except (*BROKEN, ProtocolError):
            pass
        await tls.close()
        return f"turned away: {answer}"
