"""One HTTP/2 connection, of either side: h2 reads and writes it, `Link` moves the bytes, and each `Channel` is a stream.

Three things h2 leaves to its user: that nobody is flooded (core/gateway/floods.py), that what is not taken is not granted
room for more, and that a connection that says goodbye carries its streams to their end. For h2 a GOAWAY is the end, so it
never sees one.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import hpack
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from services.proxy.core import http2
from services.proxy.core.gateway.floods import Floods
from services.proxy.core.gateway.headers import Header
from services.proxy.core.http2 import Frame, Frames
from services.proxy.core.request import PREFACE
from services.proxy.gateway import limits
from services.proxy.gateway.message import End
from services.proxy.gateway.streams import Stream
from services.proxy.gateway.upstream import MAX_HEAD

MAX_STREAMS = 100  # at a time; fewer are too few for many clients (RFC 9113, 6.5.2)
# Bytes that may wait for us, of a stream and of a connection: 40 Mbit/s over a round trip of 50 ms, and streams whose
# backend does not keep up leave the others some room.
STREAM_WINDOW = 256 * 1024
CONNECTION_WINDOW = 1024 * 1024
MAX_TABLE = 4096  # bytes of the table for compressing heads (RFC 9113, 6.5.2), however much the other side allows
MAX_BACKLOG = 256 * 1024  # bytes of answers to what is no request (pings, settings) until nothing more is read
MAX_HEADS = 16  # of one answer: informational ones, and its own

GONE = int(ErrorCodes.CANCEL)  # as if it had been said: the connection is


class _Encoder(hpack.Encoder):
    """Without Huffman coding: the library's takes time by the square of the length, 0.8 s for a value of 60 KB, and
    strangers send the values."""

    def encode(self, headers: Any, huffman: bool = False) -> bytes:
        return super().encode(headers, huffman)


class Reset(OSError):
    """The other side takes a stream back, or is gone. `code` of HTTP/2."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the stream was reset ({code})")
        self.code = code


class Head:
    """Of a message that came."""

    __slots__ = ("end", "fields")

    def __init__(self, fields: list[Header], *, end: bool) -> None:
        self.fields = fields
        self.end = end


class Channel:
    """One stream. Every method that waits may raise Reset, or TimeoutError when the other side takes nothing."""

    def __init__(self, link: "Link", number: int) -> None:
        self._link = link
        self.number = number
        self.on_reset: Callable[[], object] | None = None
        self.heads: deque[Head] = deque()
        self.body = bytearray()  # at most STREAM_WINDOW: what is not taken is not acknowledged
        self.trailers: list[Header] = []
        self.ended = False  # the other side has said all
        self.finished = False  # we have
        self.failure: int | None = None
        self.came, self.room = asyncio.Event(), asyncio.Event()
        self._owed = 0  # bytes taken, and not acknowledged yet

    async def take(self) -> Head | bytes | End:
        """The next of what came. What was taken before is done with now."""
        self._settle()
        while True:
            if self.heads:
                return self.heads.popleft()
            if self.body:
                data = bytes(self.body)
                self.body.clear()
                self._owed = len(data)
                return data
            if self.ended:
                return End(self.trailers)
            self.check()
            self.came.clear()
            await self.came.wait()

    async def begin(self, fields: list[Header], *, end: bool = False) -> None:
        """Sends a head, or trailers."""
        await self._link.drained()
        self.check()
        self._link.send_head(self.number, fields, end=end)
        self.finished = end

    async def send(self, data: bytes, *, end: bool = False) -> None:
        """Sends a body as the other side has room for it, in turn with the other streams."""
        view = memoryview(data)
        while not self.finished:
            async with self._link.turn:
                await self._link.drained()
                self.check()
                room = self._link.room(self.number)
                if room > 0 or not view:
                    piece, view = view[:room], view[room:]
                    self.finished = end and not view
                    self._link.send_data(self.number, bytes(piece), end=self.finished)
                    if not view:
                        return
                    continue
                self.room.clear()
            async with asyncio.timeout(self._link.patience):
                await self.room.wait()

    def check(self) -> None:
        """Raises Reset when it is over."""
        if self.failure is not None:
            raise Reset(self.failure)

    def fail(self, code: int) -> None:
        """Nothing more will come, nor go."""
        if self.failure is None:
            self.failure = code
            self.came.set()
            self.room.set()
            if self.on_reset is not None:
                self.on_reset()

    def close(self, code: int) -> None:
        """We are done with it: what is not at its end is taken back. May be said twice."""
        self.on_reset = None
        if self.failure is None and not (self.ended and self.finished):
            self._link.reset(self.number, code)
        self.failure = code
        self._owed += len(self.body)
        self.body.clear()
        self._settle()
        self._link.forget(self)

    def _settle(self) -> None:
        if self._owed:
            self._link.acknowledge(self.number, self._owed)
            self._owed = 0


class Link:
    """`start`, then `run` until the connection is over."""

    def __init__(self, stream: Stream, opened: Callable[[Channel, Head], None] | None = None) -> None:
        """`opened`: we are the server, and this is called with each request. None: we are the client."""
        client = opened is None
        self._stream = stream
        self._opened = opened
        self._clock = asyncio.get_running_loop().time
        self._frames = Frames(preface=not client)
        self._floods = Floods(self._clock())
        self._h2 = H2Connection(H2Configuration(client_side=client, header_encoding=None))
        values = {
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD,
        } | ({SettingCodes.ENABLE_PUSH: 0} if client else {})
        self._h2.local_settings = Settings(client=client, initial_values=values)
        self._h2.encoder = _Encoder()
        self._h2.decoder.max_header_list_size = MAX_HEAD
        self._channels: dict[int, Channel] = {}
        # Who may take nothing for how long: for a backend, the exchange has the time (ANSWER_IDLE).
        self.patience = None if client else limits.STALL
        self._ended = False
        self.turn = asyncio.Lock()
        self.last = 0x7FFF_FFFF  # stream that the other side looks at: it has said goodbye, if it is below
        self.over = asyncio.Event()  # nothing should be begun any more

    def start(self) -> None:
        """Says hello."""
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW - self._h2.inbound_flow_control_window)
        if self._opened is not None:
            self._h2.receive_data(PREFACE)  # `_frames` has looked at it, and keeps it
        self._push()

    async def run(self, data: bytes = b"") -> None:
        """Reads, `data` first, until the connection is over. Raises OSError when it ends in disorder."""
        try:
            while data or (data := await self._stream.read()):
                if not self._receive(data):
                    return
                data = b""
                if self._stream.backlog > MAX_BACKLOG:
                    await self.drained()
        finally:
            self.lose()

    def lose(self) -> None:
        """The connection is over."""
        self.over.set()
        for channel in list(self._channels.values()):
            channel.fail(GONE)

    def leave(self) -> None:
        """Tells the client to begin nothing more here; what it has begun goes on."""
        if not self.over.is_set():
            self.over.set()
            self._stream.put(http2.goodbye())

    def end(self, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Says that this is the end, unless it was said; nothing is written any more."""
        if not self._ended:
            self._h2.close_connection(code)
            self._push()
            self._ended = True

    # ── for channels ──

    def open(self, fields: list[Header], *, end: bool) -> Channel:
        """Begins a request. Raises OSError."""
        if self.over.is_set():
            raise OSError("the other side has said goodbye")
        channel = Channel(self, self._h2.get_next_available_stream_id())
        self.send_head(channel.number, fields, end=end)
        channel.finished = end
        self._channels[channel.number] = channel
        return channel

    def send_head(self, number: int, fields: list[Header], *, end: bool) -> None:
        """Raises OSError."""
        try:
            self._h2.send_headers(number, fields, end_stream=end)
        except ProtocolError as error:
            raise OSError(f"a head that cannot be sent: {error}") from error
        self._push()

    def send_data(self, number: int, data: bytes, *, end: bool) -> None:
        """Raises OSError."""
        try:
            self._h2.send_data(number, data, end_stream=end)
        except ProtocolError as error:
            raise OSError(f"data that cannot be sent: {error}") from error
        self._floods.sent(self._clock())
        self._push()

    def room(self, number: int) -> int:
        """Bytes that may be sent now. Raises OSError."""
        try:
            return max(min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size), 0)
        except ProtocolError as error:
            raise OSError(str(error)) from error

    def reset(self, number: int, code: int) -> None:
        """Takes a stream back."""
        try:
            self._h2.reset_stream(number, code)
        except ProtocolError:  # it or the connection is gone already
            return
        self._push()

    def acknowledge(self, number: int, size: int) -> None:
        """So many bytes are done with."""
        try:
            self._h2.acknowledge_received_data(size, number)
        except ProtocolError:
            return
        self._push()

    def forget(self, channel: Channel) -> None:
        self._channels.pop(channel.number, None)

    async def drained(self) -> None:
        """Waits until more may be written. Who reads nothing at all is cut off, with all its streams."""
        try:
            await self._stream.drained(self.patience)
        except TimeoutError:
            self._stream.abort()
            self.lose()
            raise

    # ── what comes ──

    def _receive(self, data: bytes) -> bool:
        """Whether to go on."""
        now = self._clock()
        try:
            for frame in self._frames.receive(data):
                if not frame.data:
                    break
                if not self._floods.received(frame, now):
                    self.end(ErrorCodes.ENHANCE_YOUR_CALM)
                    return False
                if frame.kind == http2.GOAWAY:
                    self._told_goodbye(frame)
                    continue
                for event in self._h2.receive_data(frame.data):
                    self._happened(event)
        except ProtocolError:  # h2 has told the other side
            self._push()
            self._ended = True
            return False
        except ValueError:
            self.end(ErrorCodes.PROTOCOL_ERROR)
            return False
        if self._h2.encoder.header_table_size > MAX_TABLE:
            self._h2.encoder.header_table_size = MAX_TABLE
        self._push()
        return True

    def _told_goodbye(self, frame: Frame) -> None:
        self.last = http2.last_stream(frame)
        self.over.set()
        if self._opened is None:
            for channel in list(self._channels.values()):
                if channel.number > self.last:
                    channel.fail(int(ErrorCodes.REFUSED_STREAM))

    def _happened(self, event: Event) -> None:
        match event:
            case RequestReceived() if self._opened is not None:
                channel = self._channels[event.stream_id] = Channel(self, event.stream_id)
                self._opened(channel, Head(list(event.headers), end=event.stream_ended is not None))
                return
            case RemoteSettingsChanged():
                for one in self._channels.values():
                    one.room.set()
                return
            case WindowUpdated(stream_id=0):
                for one in self._channels.values():
                    one.room.set()
                return
        found = self._channels.get(getattr(event, "stream_id", None) or 0)
        if found is not None:
            self._happened_to(found, event)
        elif isinstance(event, DataReceived):  # we were done with it
            self.acknowledge(event.stream_id, event.flow_controlled_length)

    def _happened_to(self, channel: Channel, event: Event) -> None:
        match event:
            case DataReceived():
                channel.body += event.data
                if event.flow_controlled_length > len(event.data):  # padding
                    self.acknowledge(channel.number, event.flow_controlled_length - len(event.data))
            case ResponseReceived() | InformationalResponseReceived():
                end = isinstance(event, ResponseReceived) and event.stream_ended is not None
                channel.heads.append(Head(list(event.headers), end=end))
                if len(channel.heads) > MAX_HEADS:
                    self.reset(channel.number, int(ErrorCodes.ENHANCE_YOUR_CALM))
                    channel.fail(int(ErrorCodes.ENHANCE_YOUR_CALM))
            case TrailersReceived():
                channel.trailers = list(event.headers)
            case StreamEnded():
                channel.ended = True
            case StreamReset():
                channel.fail(int(event.error_code or 0))
            case WindowUpdated():
                channel.room.set()
                return
            case _:
                return
        channel.came.set()

    def _push(self) -> None:
        if (data := self._h2.data_to_send()) and not self._ended:
            self._stream.put(data)
