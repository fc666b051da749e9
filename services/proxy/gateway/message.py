"""What passes between the two sides of an exchange, whichever HTTP each of them speaks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from services.proxy.core.gateway.headers import Header

if TYPE_CHECKING:
    from services.proxy.gateway.upstream import Upstream

# HTTP/2 error codes (RFC 9113, 7), for who speaks it.
INTERNAL_ERROR, REFUSED_STREAM = 0x2, 0x7


class Cut(Exception):
    """The client is gone, or has half an answer: it can only be cut off. `code` of HTTP/2 says why."""

    def __init__(self, why: str, code: int = INTERNAL_ERROR) -> None:
        super().__init__(why)
        self.code = code


@dataclass(frozen=True, slots=True)
class Asked:
    """The head of a request. Names of headers in lower case; the host is one of them. `modern`: who sent it knows
    informational answers, and trailers."""

    method: bytes
    target: bytes
    headers: Sequence[Header]
    has_body: bool
    modern: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, or below 200 what comes before it. `end`: that was all."""

    status: int
    headers: list[Header]
    reason: bytes = b""
    end: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """Of a message's body."""

    trailers: list[Header] = field(default_factory=list)


class Client(Protocol):
    """A request where it came from. Every method but `on_lost` raises Cut when the client is gone, or too slow."""

    asked: Asked

    async def read(self) -> bytes | End:
        """More of its body."""

    async def begin(self, answer: Answer) -> None:
        """Sends the head of the answer, or what comes before it."""

    async def write(self, data: bytes) -> None: ...

    async def end(self, trailers: list[Header]) -> None: ...

    async def reply(self, answer: Answer, body: bytes, *, close: bool) -> None:
        """A whole answer that no backend was asked for. `close`: nor may the client go on."""

    async def switch(self, answer: Answer, upstream: "Upstream") -> None:
        """Sends it; then the connections are no longer HTTP (a WebSocket): bytes are only copied. Only where the request
        asked for it."""

    def on_lost(self, call: Callable[[], None] | None) -> None:
        """Called when the client is gone for good."""
