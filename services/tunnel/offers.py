"""Streams that peers ask for, until the local proxy has answered."""

import collections
import os
import socket
import time
from collections.abc import Callable
from typing import Protocol

from services.runtime import sockets, telemetry
from services.tunnel.config import MAX_WAITING
from services.tunnel.core.frames import Opening, Reason
from services.tunnel.errors import LIMIT, NO_LISTENER
from services.tunnel.flowio import FlowIO
from services.tunnel.pairing import Pairing
from services.tunnel.streamio import StreamIO
from services.tunnel.wire import Answer, Offer

OFFER_TIMEOUT = 10.0
"""Seconds an offered stream waits for the local proxy."""


class Offered(Offer):
    """A stream that waits for an answer until `deadline`."""

    def __init__(
        self, token: bytes, pairing: Pairing, io: StreamIO | FlowIO, opening: Opening, traceparent: str, path: int
    ) -> None:
        super().__init__(token, pairing.peer, opening, traceparent, path)
        self.pairing = pairing
        self.io = io
        self.deadline = time.monotonic() + OFFER_TIMEOUT


class Listener(Protocol):
    """Who takes offers."""

    def news(self) -> None:
        """There are some to take."""

    def replaced(self) -> None:
        """Another one does from now on."""


class Offers:
    """One listener at a time takes them; answers come over the attach socket."""

    def __init__(self, node_name: str, name: Callable[[str], str]) -> None:
        """name: makes of a service what metrics call it."""
        self._name = name
        self._node_name = node_name
        self._waiting: dict[bytes, Offered] = {}
        self._untold: collections.deque[Offer] = collections.deque()
        self._listener: Listener | None = None

    def add(self, pairing: Pairing, io: StreamIO | FlowIO, opening: Opening) -> None:
        """A peer asks for a stream; refused when too many wait."""
        if len(self._waiting) >= MAX_WAITING:
            pairing.refuse(io, Reason(LIMIT, f"{MAX_WAITING} streams wait for the proxy of {self._node_name}"))
            return
        token = os.urandom(16)
        io.span = telemetry.start_span("tunnel.accept", parent=opening.traceparent, peer=pairing.peer)
        active = pairing.session.active
        path = active.kind if active is not None else 0
        offer = self._waiting[token] = Offered(token, pairing, io, opening, io.span.traceparent, path)
        self._untold.append(offer)
        if self._listener is not None:
            self._listener.news()

    def listen(self, listener: Listener) -> None:
        """A listener takes over. What the former one was told and did not answer is offered again."""
        former, self._listener = self._listener, listener
        if former is listener:
            return
        self._untold = collections.deque(self._waiting.values())
        if former is not None:
            former.replaced()
        listener.news()

    def unlisten(self, listener: Listener) -> None:
        """A listener is gone."""
        if self._listener is listener:
            self._listener = None

    def take(self, listener: Listener, most: int) -> list[Offer]:
        """The next `most` offers, in order of arrival; none for who is not the listener."""
        batch: list[Offer] = []
        while self._untold and len(batch) < most and self._listener is listener:
            offer = self._untold.popleft()
            if offer.token in self._waiting:
                batch.append(offer)
        return batch

    def answer(self, answer: Answer, sock: socket.socket | None) -> None:
        """The proxy's word on an offer."""
        offered = self._waiting.pop(answer.token, None)
        if offered is None or offered.io.stream.owner is None:
            if sock is not None:
                sockets.reset(sock)
            return
        pairing, io = offered.pairing, offered.io
        refusal = answer.refusal
        if sock is None:
            refusal = refusal or Reason(NO_LISTENER, "accepted without a descriptor")
        if io.span is not None:
            io.span.end(refusal.message if refusal is not None else "")
            io.span = None
        if refusal is None and sock is not None:
            io.service = self._name(answer.service)
            pairing.accept(io, sock)
            return
        if sock is not None:
            sockets.reset(sock)
        pairing.refuse(io, refusal or Reason(NO_LISTENER, "refused"))

    def expire(self, now: float) -> None:
        """Refuses what nobody answered in time, and forgets what nobody waits for any more."""
        if len(self._untold) > len(self._waiting):  # nobody listens, and what is over was never taken from here
            self._untold = collections.deque(offer for offer in self._untold if offer.token in self._waiting)
        for token, offered in list(self._waiting.items()):
            if offered.io.stream.owner is None:
                del self._waiting[token]
            elif now > offered.deadline:
                del self._waiting[token]
                reason = Reason(NO_LISTENER, f"no proxy answered on {self._node_name}")
                offered.pairing.refuse(offered.io, reason)

    def drop(self, pairing: Pairing) -> None:
        """A session ended: its offers are void."""
        for token, offered in list(self._waiting.items()):
            if offered.pairing is pairing:
                del self._waiting[token]
