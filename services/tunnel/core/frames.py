"""What a record holds: frames of many streams, one after another.

A frame is `kind (1) | stream id (4) | length (4) | payload`, numbers big endian.
"""

from dataclasses import dataclass
from struct import Struct

from services.tunnel.core.packets import ProtocolError

FRAME = Struct("!BII")
FRAME_SIZE = FRAME.size

OPEN = 1
"""A new stream: payload is `Opening`."""
ACCEPT = 2
"""The exit node connected the stream to its backend; no payload."""
DATA = 3
FIN = 4
"""No more data in this direction; no payload."""
RESET = 5
"""The stream is over, both directions: payload is `Reason`."""
WINDOW = 6
"""Payload is 8 bytes: the number of bytes of this stream the sender of this frame is ready to have received in all."""

_LIMIT = Struct("!Q")
_SIZES = Struct("!BHHHH")
_REASON = Struct("!B")

TCP, UDP = 1, 2


@dataclass(frozen=True, slots=True)
class Opening:
    """Where a stream should end and who asks; the strings are at most 1,024 bytes each in UTF-8."""

    network: int
    """TCP or UDP."""
    address: str
    """ "host:port" on the exit node."""
    service: str = ""
    traceparent: str = ""
    client: str = ""

    def encode(self) -> bytes:
        parts = [text.encode() for text in (self.address, self.service, self.traceparent, self.client)]
        if max(map(len, parts)) > MAX_TEXT:
            raise ValueError(f"a target's text is longer than {MAX_TEXT} bytes")
        return _SIZES.pack(self.network, *map(len, parts)) + b"".join(parts)

    @classmethod
    def decode(cls, payload: bytes) -> "Opening":
        if len(payload) < _SIZES.size:
            raise ProtocolError(f"OPEN of {len(payload)} bytes")
        network, *sizes = _SIZES.unpack_from(payload)
        if network not in (TCP, UDP) or max(sizes) > MAX_TEXT or _SIZES.size + sum(sizes) != len(payload):
            raise ProtocolError("OPEN with sizes that do not fit")
        texts, at = [], _SIZES.size
        for size in sizes:
            texts.append(payload[at : at + size].decode("utf-8", "replace"))
            at += size
        return cls(network, *texts)


MAX_TEXT = 1024


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a stream ended: `code` is a RefusalReason of protos/tunnel.proto (0: the connection was reset)."""

    code: int = 0
    message: str = ""

    def encode(self) -> bytes:
        return _REASON.pack(self.code & 0xFF) + self.message.encode()[:512]

    @classmethod
    def decode(cls, payload: bytes) -> "Reason":
        if not payload:
            return cls()
        return cls(payload[0], payload[1:513].decode("utf-8", "replace"))


def encode_limit(limit: int) -> bytes:
    """Payload of WINDOW."""
    return _LIMIT.pack(limit)


def decode_limit(payload: memoryview) -> int:
    """The limit in a WINDOW frame."""
    if len(payload) != _LIMIT.size:
        raise ProtocolError(f"WINDOW of {len(payload)} bytes")
    return int(_LIMIT.unpack(payload)[0])
