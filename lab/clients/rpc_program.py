"""`python -m lab.clients.rpc_program serve ADDRESS` and `… call ADDRESS CALLS`: a gRPC server and what is asked of it.

Messages are plain bytes, so that there is no contract to generate code from.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from lab.clients.case import expect
from lab.clients.program import attempt

SERVICE = "causeway.lab.Echo"
LARGE = 8 << 20  # bytes
OPTIONS = [("grpc.max_receive_message_length", 2 * LARGE), ("grpc.enable_http_proxy", 0)]
MANY = 200  # messages of a stream
AT_ONCE = 20
PATIENCE = 90.0  # seconds; the deadline of calls that must succeed
SHORT = 0.5  # seconds; the deadline of a call that is not answered


class Echo:
    """The server's methods."""

    def __init__(self) -> None:
        self.cancelled = 0

    async def unary(self, request: bytes, _: Any) -> bytes:
        return request

    async def fail(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("reason", "on-purpose"),))
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as you wish")
        return b""

    async def hang(self, request: bytes, context: Any) -> bytes:
        try:
            await asyncio.sleep(PATIENCE * 2)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b""

    async def count_cancelled(self, request: bytes, _: Any) -> bytes:
        return b"%d" % self.cancelled

    async def repeat(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        for number in range(MANY):
            yield b"%d " % number + request

    async def gather(self, requests: AsyncIterator[bytes], _: Any) -> bytes:
        return b"".join([it async for it in requests])

    async def converse(self, requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    def handlers(self) -> dict[str, Any]:
        one, several = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        return {
            "Unary": one(self.unary),
            "Fail": one(self.fail),
            "Hang": one(self.hang),
            "CountCancelled": one(self.count_cancelled),
            "Repeat": grpc.unary_stream_rpc_method_handler(self.repeat),
            "Gather": grpc.stream_unary_rpc_method_handler(self.gather),
            "Converse": several(self.converse),
        }


async def serve(address: str) -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, Echo().handlers()),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


class Calls:
    """What is tried, one method each."""

    def __init__(self, channel: Any, calls: int) -> None:
        self._channel = channel  # whose stubs insist on serializers, which bytes do not need
        self._calls = calls

    async def _unary(self, method: str, request: bytes, timeout: float = PATIENCE) -> bytes:
        answer: bytes = await self._channel.unary_unary(f"/{SERVICE}/{method}")(
            request, timeout=timeout, wait_for_ready=True
        )
        return answer

    async def unary(self) -> str:
        start = time.monotonic()
        expect(await self._unary("Unary", b"x") == b"x", "another answer")
        first = time.monotonic() - start
        start = time.monotonic()
        await self._unary("Unary", b"y")
        return f"first {1e3 * first:.0f} ms, then {1e3 * (time.monotonic() - start):.0f} ms"

    async def server_stream(self) -> str:
        call = self._channel.unary_stream(f"/{SERVICE}/Repeat")(b"r", timeout=PATIENCE)
        expect([it async for it in call] == [b"%d r" % number for number in range(MANY)], "other answers")
        return f"{MANY} answers"

    async def client_stream(self) -> str:
        async def requests() -> AsyncIterator[bytes]:
            for number in range(MANY):
                yield b"%d," % number

        answer = await self._channel.stream_unary(f"/{SERVICE}/Gather")(requests(), timeout=PATIENCE)
        expect(answer == b"".join([it async for it in requests()]), "another answer")
        return f"{MANY} requests"

    async def both_streams(self) -> str:
        call = self._channel.stream_stream(f"/{SERVICE}/Converse")(timeout=PATIENCE)
        start, turns = time.monotonic(), 20
        for number in range(turns):
            await call.write(b"%d" % number)
            expect(await call.read() == b"%d" % number, "an answer out of turn")
        await call.done_writing()
        expect(not isinstance(await call.read(), bytes), "no end")
        return f"{1e3 * (time.monotonic() - start) / turns:.0f} ms a turn"

    async def large(self) -> str:
        message = bytes(range(256)) * (LARGE // 256)
        start = time.monotonic()
        expect(await self._unary("Unary", message) == message, "another answer")
        return f"{2 * LARGE / (1 << 20) / (time.monotonic() - start):.1f} MiB/s"

    async def status(self) -> str:
        try:
            await self._unary("Fail", b"")
        except grpc.aio.AioRpcError as error:
            trailers: Any = dict(error.trailing_metadata())  # type: ignore[arg-type]
            expect(error.code() == grpc.StatusCode.FAILED_PRECONDITION, str(error.code()))
            expect(error.details() == "as you wish" and trailers.get("reason") == "on-purpose", str(error))
            return "FAILED_PRECONDITION with trailers"
        raise AssertionError("no error")

    async def deadline(self) -> str:
        before = await self._cancelled()
        try:
            await self._unary("Hang", b"", SHORT)
        except grpc.aio.AioRpcError as error:
            expect(error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, str(error.code()))
        else:
            raise AssertionError("it was answered")
        await self._reached(before + 1)
        return "at both ends"

    async def cancellation(self) -> str:
        before = await self._cancelled()
        call = self._channel.unary_unary(f"/{SERVICE}/Hang")(b"", timeout=PATIENCE)
        await asyncio.sleep(SHORT)  # so that the server is at it
        call.cancel()
        await self._reached(before + 1)
        return "reached the server"

    async def load(self) -> str:
        async def some() -> None:
            for _ in range(self._calls // AT_ONCE):
                await self._unary("Unary", b"load")

        start = time.monotonic()
        await asyncio.gather(*(some() for _ in range(AT_ONCE)))
        return f"{self._calls / (time.monotonic() - start):.0f} calls/s"

    async def _cancelled(self) -> int:
        return int(await self._unary("CountCancelled", b""))

    async def _reached(self, count: int) -> None:
        until = time.monotonic() + PATIENCE
        while await self._cancelled() < count:
            expect(time.monotonic() < until, "the server did not hear of it")
            await asyncio.sleep(0.05)


async def call(address: str, calls: int) -> None:
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        tried = Calls(channel, calls)
        await attempt("unary", tried.unary)
        await attempt("stream of answers", tried.server_stream)
        await attempt("stream of requests", tried.client_stream)
        await attempt("streams both ways", tried.both_streams)
        await attempt("8 MiB", tried.large)
        await attempt("status and trailers", tried.status)
        await attempt("deadline", tried.deadline)
        await attempt("cancellation", tried.cancellation)
        await attempt("load", tried.load)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[2]) if sys.argv[1] == "serve" else call(sys.argv[2], int(sys.argv[3])))
