"""Reads the head of a client's request where the service's policy needs it: just that, whole, and within bounds.

A client that drips its head (slowloris), or never sends one, holds a place here and nothing else: there are MAX_READING
of them, and who comes when all are taken takes the place of the one that has waited longest. What is no HTTP request
goes on as it is, without one. Of HTTP/2 it is the first request of the connection, if the client sends it at once (curl,
h2load). Some wait for the server's SETTINGS first, as gRPC's do: after PATIENCE they get some, the defaults, and what they
acknowledge them with is left out of what goes on, since the backend sends its own.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from services.proxy import errors
from services.proxy.core.http2 import DEFAULTS, FirstRequest
from services.proxy.core.request import Request, looks

MAX_HEAD = 32 * 1024  # bytes; with the rest of the message it fits on tunnel.attach. Servers take 8 to 64 KiB.
MAX_LIST = 64 * 1024  # bytes of an HTTP/2 head, unpacked (RFC 9113, 6.5.2)
TIMEOUT = 5.0  # s until the head must be there
PATIENCE = 0.1  # s for an HTTP/2 client to begin its first request: it may come in a packet of its own
MAX_READING = 1024  # clients at a time: 32 MiB at most


class Done(Protocol):
    """Called once per client, unless it is gone: with all that was read of it, the request if it is one, and the reason
    (of `errors`) for which it must be refused, or ""."""

    def __call__(self, head: bytes, request: Request | None, reason: str) -> None: ...


@dataclass(slots=True, eq=False)
class _Reading:
    client: socket.socket
    done: Done
    timer: asyncio.TimerHandle | None = None
    head: bytearray = field(default_factory=bytearray)
    parser: "_Http1 | _Http2 | None" = None


class Heads:
    """Owned by the departure: `read` at will, then `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reading: dict[_Reading, None] = {}  # the longest waiting first

    def __len__(self) -> int:
        return len(self._reading)

    def read(self, client: socket.socket, head: bytes, done: Done) -> None:
        """Reads on after `head`. `done` may be called before this returns; the socket is the caller's again then. A
        client that goes away meanwhile is closed, and nobody hears of it."""
        if len(self._reading) >= MAX_READING:
            self._late(next(iter(self._reading)))
        client.setblocking(False)
        one = _Reading(client, done)
        self._wait(one, TIMEOUT, self._late)
        self._reading[one] = None
        self._loop.add_reader(client, self._read, one)
        if not head or not self._feed(one, head):
            self._read(one)  # most requests are here when their connection is

    def close(self) -> None:
        """Drops those whose head is not there yet."""
        for one in list(self._reading):
            self._drop(one)

    def _read(self, one: _Reading) -> None:
        try:
            data = one.client.recv(MAX_HEAD - len(one.head))
        except BlockingIOError:
            return
        except OSError:
            self._drop(one)
            return
        if data:
            self._feed(one, data)
        else:  # it says no more: the backend may know what that means
            self._end(one, None)

    def _feed(self, one: _Reading, data: bytes) -> bool:
        """More of the head. True when that was enough."""
        one.head += data
        if one.parser is None:
            match looks(bytes(one.head)):
                case "http/1":
                    one.parser, data = _Http1(), bytes(one.head)
                case "http/2":
                    one.parser, data = _Http2(), bytes(one.head)
                    self._wait(one, PATIENCE, self._hasten)
                case "other":
                    self._end(one, None)
                    return True
        if one.parser is not None and (step := one.parser.receive(data)) != "more":
            self._end(one, step)
            return True
        if len(one.head) >= MAX_HEAD:
            self._end(one, None, errors.HEAD_TOO_LARGE)
            return True
        return False

    def _hasten(self, one: _Reading) -> None:
        """HTTP/2: a request that has begun may take its time; if none has, the client waits for us."""
        if isinstance(one.parser, _Http2) and not one.parser.first.stream:
            try:
                one.client.send(DEFAULTS)
            except OSError:
                self._drop(one)
                return
            one.parser.first.greeted = True
        self._wait(one, TIMEOUT - PATIENCE, self._late)

    def _wait(self, one: _Reading, seconds: float, then: Callable[[_Reading], None]) -> None:
        if one.timer is not None:
            one.timer.cancel()
        one.timer = self._loop.call_later(seconds, then, one)

    def _late(self, one: _Reading) -> None:
        idle = isinstance(one.parser, _Http2) and one.parser.first.idle
        self._end(one, None, "" if idle else errors.HEAD_LATE)

    def _end(self, one: _Reading, request: Request | None, reason: str = "") -> None:
        self._forget(one)
        head = bytes(one.head)
        if isinstance(one.parser, _Http2):
            head = one.parser.first.passed_on(head)
        one.done(head, request, reason)

    def _drop(self, one: _Reading) -> None:
        self._forget(one)
        one.client.close()

    def _forget(self, one: _Reading) -> None:
        del self._reading[one]
        if one.timer is not None:
            one.timer.cancel()
        self._loop.remove_reader(one.client)


class _Http1:
    def __init__(self) -> None:
        import h11  # only where a policy needs it: most nodes have none

        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)

    def receive(self, data: bytes) -> Request | Literal["more"] | None:
        """The request, once its head is whole; None: it is malformed, which is for its backend to say."""
        import h11

        self._parser.receive_data(data)
        try:
            event = self._parser.next_event()
        except h11.RemoteProtocolError:
            return None
        return Request(event.target, tuple(event.headers)) if isinstance(event, h11.Request) else "more"


class _Http2:
    def __init__(self) -> None:
        self.first = FirstRequest()

    def receive(self, data: bytes) -> Request | Literal["more"] | None:
        """As of _Http1."""
        from hpack import Decoder, HPACKError

        try:
            self.first.receive(data)
            if self.first.block is None or not self.first.whole:
                return "more"
            # Nothing came before it, so its table begins empty, and is as large as nobody agreed otherwise: 4096 bytes.
            return Request.of_fields(Decoder(MAX_LIST).decode(self.first.block, raw=True))
        except (ValueError, HPACKError):
            return None
