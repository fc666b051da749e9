"""What a record holds: frames of many streams, one after another.

A frame is `kind (1) | stream id (4) | length (4) | payload`, numbers big endian.
"""

from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

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


class Opening(NamedTuple):
    """Where a stream should end and who asks; the strings are at most 1,024 bytes each in UTF-8."""

    network: int
    """TCP or UDP."""
    address: str
    """ "host:port" on the exit node."""
    service: str = ""
    traceparent: str = ""
    client: str = ""

    def encode(self) -> bytes:
        address, service = self.address.encode(), self.service.encode()
        traceparent, client = self.traceparent.encode(), self.client.encode()
        sizes = len(address), len(service), len(traceparent), len(client)
        if max(sizes) > MAX_TEXT:
            raise ValueError(f"a target's text is longer than {MAX_TEXT} bytes")
        return _SIZES.pack(self.network, *sizes) + address + service + traceparent + client

    @staticmethod
    def decode(payload: bytes) -> "Opening":
        if len(payload) < _SIZES.size:
            raise ProtocolError(f"OPEN of {len(payload)} bytes")
        network, address, service, traceparent, client = _SIZES.unpack_from(payload)
        to_service = _SIZES.size + address
        to_traceparent = to_service + service
        to_client = to_traceparent + traceparent
        longest = max(address, service, traceparent, client)
        if network not in (TCP, UDP) or longest > MAX_TEXT or to_client + client != len(payload):
            raise ProtocolError("OPEN with sizes that do not fit")
        return Opening(
            network,
            payload[_SIZES.size : to_service].decode("utf-8", "replace"),
            payload[to_service:to_traceparent].decode("utf-8", "replace"),
            payload[to_traceparent:to_client].decode("utf-8", "replace"),
            payload[to_client:].decode("utf-8", "replace"),
        )


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
