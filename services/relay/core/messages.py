"""What is said on a control connection (protos/relay.proto, ControlMessage). Durations in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

VERSION = 1
"""Version of the control protocol."""
TOKEN_LENGTH = 32
"""Bytes of a one-time token of a circuit leg."""


class Reason(Enum):
    """Why a request was refused."""

    NO_RESERVATION = "no-reservation"
    LIMIT = "limit"
    DRAINING = "draining"
    NOT_A_RELAY = "not-a-relay"
    BAD_REQUEST = "bad-request"


@dataclass(frozen=True, slots=True)
class Hello:
    version: int
    cluster: str
    node_name: str
    expected_relay: str = ""


@dataclass(frozen=True, slots=True)
class Welcome:
    version: int
    node_name: str
    observed: str


@dataclass(frozen=True, slots=True)
class Reserve:
    pass


@dataclass(frozen=True, slots=True)
class Voucher:
    """A relay's signed word that it serves a peer. `expires_at`: Unix time in whole seconds."""

    relay: str
    peer: str
    expires_at: int
    signature: bytes

    @staticmethod
    def signed_bytes(relay: str, peer: str, expires_at: int) -> bytes:
        """What the signature covers."""
        return b"causeway-voucher-v1\0" + f"{relay}\0{peer}\0{expires_at}".encode()


@dataclass(frozen=True, slots=True)
class Reserved:
    ttl: float
    voucher: Voucher


@dataclass(frozen=True, slots=True)
class Connect:
    peer: str
    traceparent: str = ""
    """Of the stream that needs the circuit (W3C); may be empty."""


@dataclass(frozen=True, slots=True)
class Circuit:
    token: bytes
    timeout: float


@dataclass(frozen=True, slots=True)
class Incoming:
    peer: str
    token: bytes
    timeout: float


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The leg with this token will not come."""

    token: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    reason: Reason
    message: str
    alternatives: tuple[str, ...] = ()
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    load_permille: int = 0


@dataclass(frozen=True, slots=True)
class DrainNotice:
    deadline: float
    spread: float


@dataclass(frozen=True, slots=True)
class Reject:
    reason: str
    message: str


class Outcome(Enum):
    """How a connection back to a client went."""

    CONNECTED = "connected"
    RESET = "reset"
    SILENCE = "silence"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class DialBack:
    """Try to connect to this port of the client's own IP."""

    port: int


@dataclass(frozen=True, slots=True)
class DialledBack:
    """`token`: what the relay sent on that connection."""

    outcome: Outcome
    token: bytes


Message = (
    Hello
    | Welcome
    | Reserve
    | Reserved
    | Connect
    | Circuit
    | Incoming
    | Withdraw
    | Refused
    | Heartbeat
    | DrainNotice
    | Reject
    | DialBack
    | DialledBack
)
