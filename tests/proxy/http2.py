"""Both ends of HTTP/2, byte by byte: a client that says what it is told to, and a backend that tells what it was asked."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)

from services.proxy.core.request import PREFACE

HELLO = PREFACE + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


@dataclass
class Told:
    """What came on one stream."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None


class Client:
    """One connection. `goodbye`: the error code of a GOAWAY."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.h2 = H2Connection(
            H2Configuration(client_side=True, header_encoding="latin-1", validate_outbound_headers=False)
        )
        self.told: dict[int, Told] = {}
        self.goodbye: int | None = None
        self.h2.initiate_connection()
        self.flush()

    @classmethod
    async def open(cls, ip: str, port: int, **more: Any) -> "Client":
        return cls(*await asyncio.open_connection(ip, port, **more))

    def flush(self, more: bytes = b"") -> None:
        """Sends what is due, and `more`, which h2 does not know of."""
        self.writer.write(self.h2.data_to_send() + more)

    def ask(self, path: str = "/", *headers: tuple[str, str], method: str = "GET", end: bool = True) -> int:
        number = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "a.test"), *headers]
        self.h2.send_headers(number, fields, end_stream=end)
        self.told[number] = Told()
        self.flush()
        return number

    async def hear(self, done: Callable[[], bool], *, seconds: float = 60.0, take: bool = True) -> None:
        """Reads until that, or the connection is over. `take`: and gives room for more."""
        async with asyncio.timeout(seconds):
            while not done():
                data = await self._reader.read(1 << 16)
                if not data:
                    return
                for event in self.h2.receive_data(data):
                    self._happened(event, take=take)
                self.flush()

    async def answer(self, number: int) -> Told:
        await self.hear(lambda: self.told[number].over)
        return self.told[number]

    async def get(self, path: str = "/", *headers: tuple[str, str]) -> Told:
        return await self.answer(self.ask(path, *headers))

    async def pour(self, number: int, size: int, *, end: bool = False) -> None:
        """Sends so many bytes of a body, as there is room for them, or until there is an answer."""
        told = self.told[number]
        while size:
            await self.hear(lambda: told.over or self.h2.local_flow_control_window(number) > 0)
            if told.over:
                return
            room = min(self.h2.local_flow_control_window(number), 16_384, size)
            size -= room
            self.h2.send_data(number, bytes(room), end_stream=end and not size)
            self.flush()

    async def end(self) -> None:
        """Reads to the end of the connection."""
        await self.hear(lambda: False)

    def _happened(self, event: Any, *, take: bool) -> None:
        if isinstance(event, ConnectionTerminated):
            self.goodbye = int(event.error_code or 0)
        one = self.told.get(getattr(event, "stream_id", None) or 0)
        if one is None:
            return
        match event:
            case ResponseReceived():
                one.headers = dict(event.headers)
                one.status = int(one.headers[":status"])
            case DataReceived():
                one.body += event.data
                if take:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case TrailersReceived():
                one.trailers = dict(event.headers)
            case StreamEnded():
                one.ended = True
            case StreamReset():
                one.reset = int(event.error_code)


class Backend:
    """A server of HTTP/2 in clear text that tells what it was asked, as JSON; with trailers, on request."""

    def __init__(self, ip: str) -> None:
        self.ip, self.port = ip, 0
        self.requests: Counter[str] = Counter()  # by path
        self.reset: list[int] = []  # codes by which streams were taken back
        self.connections = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.ip, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        h2 = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        h2.initiate_connection()
        writer.write(h2.data_to_send())
        asked: dict[int, dict[str, str]] = {}
        sizes: Counter[int] = Counter()
        left: dict[int, int] = {}  # bytes of an answer to come
        try:
            while data := await reader.read(1 << 16):
                for event in h2.receive_data(data):
                    match event:
                        case RequestReceived():
                            asked[event.stream_id] = dict(event.headers)
                            self.requests[asked[event.stream_id][":path"]] += 1
                        case DataReceived():
                            sizes[event.stream_id] += len(event.data)
                            h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                        case TrailersReceived():
                            asked[event.stream_id] |= {f"trailer {name}": text for name, text in event.headers}
                        case StreamEnded():
                            if self._answer(h2, event.stream_id, asked[event.stream_id], sizes[event.stream_id], left):
                                return
                        case StreamReset():
                            self.reset.append(int(event.error_code))
                            left.pop(event.stream_id, None)
                        case WindowUpdated():
                            pass
                self._pour(h2, left)
                writer.write(h2.data_to_send())
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.write(h2.data_to_send())
            writer.close()

    def _answer(self, h2: H2Connection, number: int, asked: dict[str, str], size: int, left: dict[int, int]) -> bool:
        """Whether the connection is to end."""
        path, _, query = asked[":path"].partition("?")
        if path == "/slow":
            return False
        if path == "/cut":
            return True
        if path == "/refuse":
            h2.reset_stream(number, int(query or 7))
            return False
        if path == "/large":
            h2.send_headers(number, [(":status", "200")])
            left[number] = int(query)
            return False
        if path == "/hint":
            h2.send_headers(number, [(":status", "103"), ("link", "</x>")])
        body = json.dumps({"headers": asked, "size": size}).encode()
        empty = path == "/empty" or asked[":method"] == "HEAD"
        h2.send_headers(number, [(":status", "200"), ("x-backend", "two")], end_stream=empty)
        if not empty:
            h2.send_data(number, body, end_stream=path != "/trailers")
        if path == "/trailers":
            h2.send_headers(number, [("x-after", "all")], end_stream=True)
        if path == "/goodbye":
            h2.close_connection()
            return True
        return False

    @staticmethod
    def _pour(h2: H2Connection, left: dict[int, int]) -> None:
        for number in list(left):
            while (room := min(h2.local_flow_control_window(number), h2.max_outbound_frame_size, left[number])) > 0:
                left[number] -= room
                h2.send_data(number, bytes(room), end_stream=not left[number])
                if not left[number]:
                    del left[number]
                    break
