"""CONTROL packets: what two ends of one link tell each other about it, and the session's acknowledgement.

They are sealed by the link's own key and never sent again: the next one says everything anew.
"""

from dataclasses import dataclass
from struct import Struct

from services.tunnel.core.packets import ProtocolError

_BODY = Struct("!BQQHIII")

PING = 1
"""Please answer with my `stamp` as `echo`."""
PONG = 2
"""`echo` is the stamp of your PING."""
SUSPECT = 4
"""I do not trust the link `about` any more: send what matters on this one too."""
GOAWAY = 8
"""I send no more records on this link; close it when you do not need it either."""
NOTE = 16
"""UTF-8 JSON follows (signalling between the two drivers)."""
END = 32
"""The whole session ends, in order: nothing is open any more."""

BUSY = 64
"""With PONG: it waited behind much data of mine, so it measures my queue."""

MAX_NOTE = 16 * 1024
"""Largest note, bytes."""


@dataclass(slots=True)
class Control:
    """One CONTROL packet."""

    flags: int = 0
    acked: int = 0
    """All records below this sequence have been received."""
    heard: int = 0
    """RECORD packets received on this link so far. A count, not a sequence: a link may carry an old
    record after a newer one, and then the highest sequence would say too much."""
    held: int = 0
    """Milliseconds since the last of them came."""
    stamp: int = 0
    """Sender's clock in microseconds, modulo 2^32."""
    echo: int = 0
    about: int = 0
    """Id of the suspected link."""
    note: bytes = b""

    def encode(self) -> bytes:
        return (
            _BODY.pack(
                self.flags,
                self.acked,
                self.heard,
                min(self.held, 0xFFFF),
                self.stamp & 0xFFFFFFFF,
                self.echo,
                self.about,
            )
            + self.note
        )

    @classmethod
    def decode(cls, body: bytes | memoryview) -> "Control":
        if not _BODY.size <= len(body) <= _BODY.size + MAX_NOTE:
            raise ProtocolError(f"CONTROL of {len(body)} bytes")
        flags, acked, heard, held, stamp, echo, about = _BODY.unpack_from(body)
        return cls(flags, acked, heard, held, stamp, echo, about, bytes(body[_BODY.size :]))
