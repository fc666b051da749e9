"""As much of HTTP/2 (RFC 9113) as it takes to find a client's first request, and to refuse it.

To refuse it nobody reads what it asks for, so no header compression has to be undone, and ours is all literals. Where a
policy needs a header, HPACK is a library's (services/proxy/head.py).
"""

from services.proxy.core.request import PREFACE

_HEADER = 9  # bytes of a frame before its payload
_DATA, _HEADERS, _SETTINGS, _GOAWAY, _CONTINUATION = 0x0, 0x1, 0x4, 0x7, 0x9
_ACK = _END_STREAM = 0x1
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_PRIORITY_SIZE = 5  # bytes before the block
MAX_FRAME = 16_384  # payload of a frame, as long as nobody agreed on more

# HPACK (RFC 7541): a literal that is not indexed, whose name is this entry of the static table.
_STATUS, _CONTENT_LENGTH, _CONTENT_TYPE = b"\x08", b"\x0f\x0d", b"\x0f\x10"

# What a server says first: its SETTINGS, none of which differs from the defaults, and that it has the client's. A client
# may wait for this before it sends its first request.
GREETING = bytes((0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0)) + bytes((0, 0, 0, _SETTINGS, _ACK, 0, 0, 0, 0))


class FirstRequest:
    """The first request of a client: `receive` what it sends, preface included, until `block` is there."""

    def __init__(self) -> None:
        self.stream = 0  # that it is on; 0: it has not begun
        self.block: bytes | None = None  # its headers, still compressed
        self._data = bytearray()  # not looked at yet
        self._pieces = bytearray()  # of the block
        self._greeted = False  # the preface and the head of SETTINGS were there

    def receive(self, data: bytes) -> None:
        """Holds no more than what it was given. Raises ValueError when this is not HTTP/2 after all."""
        self._data += data
        if not self._greeted:
            if len(self._data) < len(PREFACE) + _HEADER:
                return
            if not self._data.startswith(PREFACE) or self._data[len(PREFACE) + 3] != _SETTINGS:
                raise ValueError("something else than SETTINGS, expected them first")
            self._greeted = True
            del self._data[: len(PREFACE)]
        at = 0
        while self.block is None and len(self._data) - at >= _HEADER:
            end = at + _HEADER + int.from_bytes(self._data[at : at + 3])
            kind, flags = self._data[at + 3 : at + 5]
            self._look(kind, int.from_bytes(self._data[at + 5 : at + _HEADER]) & 0x7FFF_FFFF, end - at - _HEADER)
            if end > len(self._data):
                break
            if self.stream:
                self._take(kind, flags, bytes(self._data[at + _HEADER : end]))
            at = end
        del self._data[:at]

    def _look(self, kind: int, stream: int, length: int) -> None:
        """The head of a frame, which may be here before its payload is."""
        if length > MAX_FRAME:
            raise ValueError(f"a frame of {length} bytes, expected {MAX_FRAME} at most")
        if self._pieces and (kind, stream) != (_CONTINUATION, self.stream):
            raise ValueError(f"a frame of type {kind} amid headers, expected CONTINUATION")
        if kind == _HEADERS:
            if stream % 2 == 0:
                raise ValueError(f"a request on stream {stream}, expected an odd one")
            self.stream = stream
        elif kind == _CONTINUATION and not self._pieces:
            raise ValueError("CONTINUATION of nothing, expected HEADERS first")

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        """A frame of the block, whole."""
        if kind == _HEADERS:
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
    goodbye = stream.to_bytes(4) + bytes(4)  # no stream behind this one was looked at; no error
    return (
        _frame(_HEADERS, _END_HEADERS, stream, block)
        + _frame(_DATA, _END_STREAM, stream, body)
        + _frame(_GOAWAY, 0, 0, goodbye)
    )


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _literal(name: bytes, value: str) -> bytes:
    return name + bytes((len(value),)) + value.encode()
