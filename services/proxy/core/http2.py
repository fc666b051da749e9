"""As much of HTTP/2 (RFC 9113) as it takes to find a client's first request, and to refuse it; and its frames, for who
looks at them before a library does.

To refuse it nobody reads what it asks for, so no header compression has to be undone, and ours is all literals. Where a
policy needs a header, HPACK is a library's (services/proxy/head.py).
"""

from collections.abc import Iterator
from typing import NamedTuple

from services.proxy.core.request import PREFACE

_HEADER = 9  # bytes of a frame before its payload
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, CONTINUATION = 0x0, 0x1, 0x3, 0x4, 0x7, 0x9
_ACK = END_STREAM = 0x1
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_PRIORITY_SIZE = 5  # bytes before the block
MAX_FRAME = 16_384  # payload of a frame, as long as nobody agreed on more

# HPACK (RFC 7541): a literal that is not indexed, whose name is this entry of the static table.
_STATUS, _CONTENT_LENGTH, _CONTENT_TYPE = b"\x08", b"\x0f\x0d", b"\x0f\x10"

# What a server says first: its SETTINGS, none of which differs from the defaults. A client may wait for them before it
# sends its first request. Then, that it has the client's.
DEFAULTS = bytes((0, 0, 0, SETTINGS, 0, 0, 0, 0, 0))
GREETING = DEFAULTS + bytes((0, 0, 0, SETTINGS, _ACK, 0, 0, 0, 0))


class Frame(NamedTuple):
    """`data` is all of it, its head included; b"" where only the head has come so far."""

    kind: int
    flags: int
    stream: int
    data: bytes

    @property
    def payload(self) -> bytes:
        return self.data[_HEADER:]


class Frames:
    """Cuts what one side sends into frames: `receive` its bytes. Holds less than one frame."""

    def __init__(self, *, preface: bool) -> None:
        """`preface`: it is the client's side, which begins with one."""
        self._data = bytearray()
        self._preface = preface
        self._first = True

    def receive(self, data: bytes) -> Iterator[Frame]:
        """Those that are whole now, and at last the one that has only begun, if its head is here. Raises ValueError when
        this is not HTTP/2 after all; the frames before that were given."""
        self._data += data
        if self._preface:
            if len(self._data) < len(PREFACE):
                return
            if not self._data.startswith(PREFACE):
                raise ValueError("something else than the preface, expected that first")
            self._preface = False
            del self._data[: len(PREFACE)]
        at = 0
        try:
            while len(self._data) - at >= _HEADER:
                length, kind, flags = int.from_bytes(self._data[at : at + 3]), self._data[at + 3], self._data[at + 4]
                if length > MAX_FRAME:
                    raise ValueError(f"a frame of {length} bytes, expected {MAX_FRAME} at most")
                if self._first and kind != SETTINGS:
                    raise ValueError(f"a frame of type {kind}, expected SETTINGS first")
                stream = int.from_bytes(self._data[at + 5 : at + _HEADER]) & 0x7FFF_FFFF
                end = at + _HEADER + length
                if end > len(self._data):
                    yield Frame(kind, flags, stream, b"")
                    return
                self._first = False
                at, whole = end, bytes(self._data[at:end])
                yield Frame(kind, flags, stream, whole)
        finally:
            del self._data[:at]


class FirstRequest:
    """The first request of a client: `receive` what it sends, preface included, until `block` is there."""

    def __init__(self) -> None:
        self.stream = 0  # that it is on; 0: it has not begun
        self.block: bytes | None = None  # its headers, still compressed
        self.greeted = False  # with DEFAULTS: the client owes an acknowledgement, which its backend must not see
        self._ack: slice | None = None  # where that is
        self._at = len(PREFACE)  # bytes that were received in whole frames
        self._frames = Frames(preface=True)
        self._pieces = bytearray()  # of the block

    @property
    def whole(self) -> bool:
        """Nothing more is to be received for it."""
        return self.block is not None and (self._ack is not None or not self.greeted)

    @property
    def idle(self) -> bool:
        """The client could have sent a request, and did not."""
        return self._ack is not None and not self.stream

    def passed_on(self, data: bytes) -> bytes:
        """What its backend gets of `data`, which is all that was received."""
        ack = self._ack if self.greeted else None
        return data if ack is None else data[: ack.start] + data[ack.stop :]

    def receive(self, data: bytes) -> None:
        """Holds no more than what it was given. Raises ValueError when this is not HTTP/2 after all."""
        for frame in self._frames.receive(data):
            if self.whole:
                return
            end = self._at + len(frame.data)
            if frame.data and frame.kind == SETTINGS and frame.flags & _ACK and self._ack is None:
                self._ack = slice(self._at, end)
            self._at = end
            if self.block is None:
                self._look(frame.kind, frame.stream)
                if self.stream and frame.data:
                    self._take(frame.kind, frame.flags, frame.payload)

    def _look(self, kind: int, stream: int) -> None:
        """The head of a frame, which may be here before its payload is."""
        if self._pieces and (kind, stream) != (CONTINUATION, self.stream):
            raise ValueError(f"a frame of type {kind} amid headers, expected CONTINUATION")
        if kind == HEADERS:
            if stream % 2 == 0:
                raise ValueError(f"a request on stream {stream}, expected an odd one")
            self.stream = stream
        elif kind == CONTINUATION and not self._pieces:
            raise ValueError("CONTINUATION of nothing, expected HEADERS first")

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        """A frame of the block, whole."""
        if kind == HEADERS:
            padding = payload[0] if flags & _PADDED and payload else 0
            start = bool(flags & _PADDED) + (_PRIORITY_SIZE if flags & _PRIORITY else 0)
            if start + padding > len(payload):
                raise ValueError(f"{padding} bytes of padding in a frame of {len(payload)}, expected fewer")
            payload = payload[start : len(payload) - padding]
        self._pieces += payload
        if flags & _END_HEADERS:
            self.block = bytes(self._pieces)
        elif not payload:  # costs nothing and leads nowhere (CONTINUATION flood, CVE-2024-27316)
            raise ValueError("an empty piece of headers, expected some")


def first_stream(data: bytes) -> int:
    """The stream of the first request in `data`, which begins with the preface; 0: it has not come. Raises ValueError
    when this is not HTTP/2 after all."""
    first = FirstRequest()
    first.receive(data)
    return first.stream


def answer(stream: int, status: int, body: bytes) -> bytes:
    """The whole answer on that stream, after which the connection ends; behind GREETING."""
    block = _literal(_STATUS, str(status)) + _literal(_CONTENT_TYPE, "text/plain; charset=utf-8")
    block += _literal(_CONTENT_LENGTH, str(len(body)))
    return _frame(HEADERS, _END_HEADERS, stream, block) + _frame(DATA, END_STREAM, stream, body) + goodbye(stream)


def goodbye(last: int = 0x7FFF_FFFF) -> bytes:
    """GOAWAY without an error: streams behind `last` were not looked at. As it is: there will be one, do not begin others
    (RFC 9113, 6.8)."""
    return _frame(GOAWAY, 0, 0, last.to_bytes(4) + bytes(4))


def last_stream(frame: Frame) -> int:
    """Of a GOAWAY: those behind it were not looked at."""
    return int.from_bytes(frame.payload[:4]) & 0x7FFF_FFFF


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _literal(name: bytes, value: str) -> bytes:
    return name + bytes((len(value),)) + value.encode()
