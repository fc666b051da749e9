"""As much of HTTP/2 (RFC 9113) as it takes to refuse a client: its first request is found, and answered without reading
what it asks for. So no header compression has to be undone, and ours is all literals.
"""

from services.proxy.core.request import PREFACE

_HEADER = 9  # bytes of a frame before its payload
_DATA, _HEADERS, _SETTINGS, _GOAWAY = 0x0, 0x1, 0x4, 0x7
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
MAX_FRAME = 16_384  # payload of a frame, as long as nobody agreed on more

# HPACK (RFC 7541): a literal that is not indexed, whose name is this entry of the static table.
_STATUS, _CONTENT_LENGTH, _CONTENT_TYPE = b"\x08", b"\x0f\x0d", b"\x0f\x10"

# What a server says first: its SETTINGS, none of which differs from the defaults, and that it has the client's. A client
# may wait for this before it sends its first request.
GREETING = bytes((0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0)) + bytes((0, 0, 0, _SETTINGS, _ACK, 0, 0, 0, 0))


def first_stream(data: bytes) -> int:
    """The stream of the first request in `data`, which begins with the preface; 0: it has not come. Raises ValueError
    when this is not HTTP/2 after all."""
    at = len(PREFACE)
    while len(data) - at >= _HEADER:
        length = int.from_bytes(data[at : at + 3])
        if length > MAX_FRAME:
            raise ValueError(f"a frame of {length} bytes, expected {MAX_FRAME} at most")
        kind, stream = data[at + 3], int.from_bytes(data[at + 5 : at + 9]) & 0x7FFF_FFFF
        if at == len(PREFACE) and kind != _SETTINGS:
            raise ValueError(f"a frame of type {kind}, expected SETTINGS first")
        if kind == _HEADERS:
            if stream % 2 == 0:
                raise ValueError(f"a request on stream {stream}, expected an odd one")
            return stream
        at += _HEADER + length
    return 0


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
