"""What an exchange needs of a connection to a backend; one request at a time."""

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass

from services.proxy.core.catalog import Backend
from services.proxy.core.gateway.headers import Head, Header
from services.proxy.gateway.message import INTERNAL_ERROR, Answer, Asked, End
from services.proxy.gateway.streams import Stream

MAX_HEAD = 64 * 1024  # bytes of a head


class Garbled(OSError):
    """A backend breaks its protocol, or what it is sent would."""


@dataclass(slots=True, eq=False)
class Upstream(ABC):
    """One connection. `used`: it has carried a request before. `among`: the backends of which it has one; which, only the
    departure knows."""

    stream: Stream
    key: tuple[str, str, bool]
    among: tuple[Backend, ...] = ()
    once: bool = False  # its backend was chosen for the request that it carries
    used: bool = False
    heard: bool = False  # something came since the last request began
    watch: "asyncio.Task[None] | None" = None
    code: int = INTERNAL_ERROR  # of HTTP/2, by which the backend ended the request
    untouched: bool = False  # the backend says that it did nothing about the request

    def start(self) -> "asyncio.Task[None] | None":
        """What has to run as long as the connection lives."""
        return None

    @abstractmethod
    async def ask(self, asked: Asked, head: Head) -> None:
        """Begins a request; `head` is the client's own, for what belongs to a connection. Raises OSError for what cannot
        be said; a backend that takes no more may have answered nevertheless: its answer tells."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """More of the request's body. Raises OSError."""

    @abstractmethod
    async def finish(self, trailers: list[Header]) -> None:
        """The end of the request's body. Raises OSError."""

    @abstractmethod
    async def hear(self) -> Answer | bytes | End:
        """The next of the answer. Raises OSError."""

    @abstractmethod
    def renew(self) -> bool:
        """The request is over, or is to be: whether another one may follow."""

    @abstractmethod
    async def idle(self) -> None:
        """Returns when it had better not be used again. Can be cancelled without loss."""

    def abort(self) -> None:
        """Ends the connection at once."""
        self.stream.abort()
