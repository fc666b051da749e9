"""A session with its sockets: carries out what the core decides."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.tunnel import metrics
from services.tunnel.core import events
from services.tunnel.core.events import DATA, Event
from services.tunnel.core.frames import Opening, Reason
from services.tunnel.core.link import PATH_NAMES, PUNCHED, Link
from services.tunnel.core.punch import Punch
from services.tunnel.core.session import Session
from services.tunnel.core.stream import Stream
from services.tunnel.engine import Engine
from services.tunnel.errors import NO_PATH, Refused
from services.tunnel.flowio import FlowIO
from services.tunnel.keys import SessionKeys
from services.tunnel.life import Life
from services.tunnel.linkio import LinkIO
from services.tunnel.streamio import StreamIO

MAX_LINKS = 32
MAX_UNCONFIRMED = 8
"""Links of one session; an honest peer has two or three, and some more while a better path is looked for."""
BROKEN_STREAM = Reason(0, "an internal error of the tunnel, see its log")

log = logging.getLogger("causeway.tunnel")


class Owner(Protocol):
    """What a pairing tells of itself and its links, and asks about them."""

    def failure(self, pairing: "Pairing") -> str: ...
    def links_changed(self, pairing: "Pairing", *, urgent: bool) -> None: ...
    def renew(self, pairing: "Pairing", old: Link) -> None: ...
    def switched(self, pairing: "Pairing", before: str, after: str, why: str, *, lost: bool) -> None: ...
    def link_lost(self, link: Link) -> None: ...
    def stalled(self, pairing: "Pairing", cause: str, seconds: float) -> None: ...
    def noted(self, pairing: "Pairing", note: bytes) -> None: ...
    def pairing_ended(self, pairing: "Pairing", reason: str) -> None: ...

    wake: Callable[[], None]


class Openings(Protocol):
    """What a pairing tells of its streams."""

    def opened(self, pairing: "Pairing", io: StreamIO | FlowIO, opening: Opening) -> None: ...
    def accepted(self, io: StreamIO | FlowIO) -> None: ...
    def closed(self, io: StreamIO | FlowIO, reason: Reason | None) -> None: ...
    def first_byte(self, io: StreamIO | FlowIO) -> None: ...


@dataclass(eq=False)
class Pairing:
    """The session with one peer, its links' and its streams' sockets."""

    peer: str
    keys: SessionKeys
    session: Session
    engine: Engine
    owner: Owner
    openings: Openings
    instance: str
    """The run of the peer's tunnel that this session is with."""
    blocked: dict[StreamIO | FlowIO, None] = field(default_factory=dict)
    """Streams that are not read because the session is full, in order."""
    ended: str = ""
    """Why it ended."""
    flows: set[FlowIO] = field(default_factory=set)
    punch: Punch = field(init=False)
    life: Life = field(default_factory=Life)
    _marked: bool = False
    _pings: list[asyncio.Future[float]] = field(default_factory=list)
    _counted: tuple[int, int] = (0, 0)
    _relay: str = ""
    """Of the link that is active, or was it last."""
    _lost: bool = False
    """There has been none since."""

    def __post_init__(self) -> None:
        self.punch = Punch(starter=not self.keys.initiator)

    def mark(self) -> None:
        """Something waits to be sent: flush at the end of this batch."""
        if not self._marked:
            self._marked = True
            self.engine.dirty(self)

    def look(self) -> None:
        """Something came in: flush at the end of this batch if it left something to send."""
        if self.session.gathered or any(link.queue for link in self.session.links):
            self.mark()
        else:
            self.owner.wake()

    def flush(self, now: float) -> None:
        """Seals what gathered and hands the links' queues to the kernel."""
        self._marked = False
        session = self.session
        session.flush(now)
        for link in list(session.links):  # one that breaks is removed
            if link.queue and link.owner is not None:
                link.owner.pump()
        self.owner.wake()

    def tick(self, now: float) -> None:
        """What time brings."""
        self.apply(self.session.tick(now))
        if any(link.queue for link in self.session.links):
            self.mark()

    # ---------------------------------------------------------------- links

    def add_link(self, sock: socket.socket, link: Link, head: bytes = b"") -> None:
        """A joined connection becomes a link of the session; `head`: packets that were read already.

        Whoever repeats a JOIN that he has seen gets so far, and no further. His links push each other out, and
        do not keep the peer from joining.
        """
        doubtful = [one for one in self.session.links if not one.confirmed]
        if len(doubtful) >= MAX_UNCONFIRMED:
            self._close_link(doubtful[0], "silent")
        elif len(self.session.links) - len(doubtful) >= MAX_LINKS:
            sock.close()
            return
        io = LinkIO(self.engine, self, link, sock)
        self.session.link_up(link, time.monotonic())
        self.mark()
        if head:
            io.take(head)

    async def round_trip(self) -> float:
        """Measures the active path now, seconds."""
        waiter: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._pings = [*(one for one in self._pings if not one.done()), waiter]
        if self.session.active is not None:
            self.session.probe(self.session.active, time.monotonic())
            self.mark()
        return await waiter

    def count(self) -> None:
        """Adds what was carried since the last time to the metrics."""
        session = self.session
        totals = (session.switches, session.resent)
        counters = (metrics.SWITCHES, metrics.RESENT)
        for counter, total, before in zip(counters, totals, self._counted, strict=True):
            counter.inc(total - before)
        self._counted = totals

    def lose(self, io: LinkIO, cause: str) -> None:
        """A link broke."""
        link = io.link
        io.close(reset=not link.closing)
        if not link.closing and not self.ended:
            log.info(
                "link lost", extra={"peer": self.peer, "relay": link.relay, "address": link.remote, "reason": cause}
            )
        self._take_down(link, "retired" if link.closing else "relay_lost" if link.relay else "path_lost")

    def _take_down(self, link: Link, cause: str) -> None:
        now = time.monotonic()
        if link.kind == PUNCHED and link.confirmed:
            self.punch.lost(max(link.last_in, link.progress) - link.started)
        if cause != "retired" and link.confirmed and not self.ended:
            self.owner.link_lost(link)
        self.apply(self.session.link_down(link, now, cause))
        self.mark()
        if not self.ended:
            self.owner.links_changed(self, urgent=cause != "retired" and link.confirmed)

    # ---------------------------------------------------------------- streams

    def open_stream(self, opening: Opening) -> StreamIO | FlowIO:
        """A new stream to the peer; attach its socket next."""
        stream = self.session.open(opening)
        self.mark()
        return self._io(stream)

    def _io(self, stream: Stream) -> StreamIO | FlowIO:
        if not stream.datagram:
            return StreamIO(self.engine, self, stream)
        flow = FlowIO(self.engine, self, stream)
        self.flows.add(flow)
        return flow

    def accept(self, io: StreamIO | FlowIO, sock: socket.socket) -> None:
        """The backend of a stream that the peer opened is connected."""
        self.session.accept(io.stream)
        io.attach(sock)
        self.mark()

    def refuse(self, io: StreamIO | FlowIO, reason: Reason) -> None:
        """A stream that the peer opened goes nowhere."""
        self.session.reset(io.stream, reason)
        self.mark()
        io.close(reset=True)

    def expire_flows(self, before: float) -> None:
        """Ends the UDP flows that were used last before this time."""
        for flow in [flow for flow in self.flows if flow.used_at < before]:
            flow.expire()

    def closed(self, io: StreamIO | FlowIO) -> None:
        """The stream's socket was given up."""
        if isinstance(io, FlowIO):
            self.flows.discard(io)
        self.blocked.pop(io, None)
        self.openings.closed(io, None)

    # ---------------------------------------------------------------- events

    def apply(self, batch: Sequence[Event]) -> None:
        """Carries out what the core decided."""
        for kind, subject, detail in batch:
            try:
                if kind == DATA:
                    if subject.owner is not None:
                        subject.owner.deliver(detail)
                else:
                    handler = _HANDLERS.get(kind)
                    if handler is not None:
                        handler(self, subject, detail)
            except Exception:  # a fault of ours: the rest of the batch belongs to others
                log.exception("event failed", extra={"peer": self.peer, "event": kind})
                if isinstance(subject, Stream):
                    self._break_stream(subject)

    def _break_stream(self, stream: Stream) -> None:
        """Bytes of it may be lost: it must not go on as if nothing had happened."""
        self.session.reset(stream, BROKEN_STREAM)
        self.mark()
        if stream.owner is not None:
            stream.owner.close(reset=True)

    def _opened(self, stream: Stream, opening: Opening) -> None:
        self.openings.opened(self, self._io(stream), opening)

    def _accepted(self, stream: Stream, _: None) -> None:
        if stream.owner is not None:
            self.openings.accepted(stream.owner)

    def _finished(self, stream: Stream, _: None) -> None:
        if stream.owner is not None:
            stream.owner.finish()

    def _reset(self, stream: Stream, reason: Reason) -> None:
        io = stream.owner
        if io is not None:
            self.openings.closed(io, reason)
            io.close(reset=True)

    def _datagram(self, stream: Stream, payload: memoryview) -> None:
        if stream.owner is not None:
            stream.owner.deliver(payload)

    def _credit(self, stream: Stream, _: None) -> None:
        if stream.owner is not None:
            stream.owner.resume()

    def _unblocked(self, _: None, __: None) -> None:
        waiting, self.blocked = self.blocked, {}
        for io in waiting:
            io.resume()

    def _link_ready(self, link: Link, _: None) -> None:
        log.info(
            "link up",
            extra={"peer": self.peer, "relay": link.relay, "address": link.remote, "path": PATH_NAMES[link.kind]},
        )
        self.mark()
        self.owner.links_changed(self, urgent=False)

    def _switched(self, link: Link | None, cause: str) -> None:
        self.mark()
        if link is None:
            self._lost = True
        else:
            self.owner.switched(self, self._relay, link.relay, cause, lost=self._lost)
            self._relay, self._lost = link.relay, False
            log.info(
                "path switched", extra={"peer": self.peer, "relay": link.relay, "address": link.remote, "reason": cause}
            )

    def _suspected(self, link: Link, _: None) -> None:
        log.info("link suspect", extra={"peer": self.peer, "relay": link.relay, "address": link.remote})
        self.mark()
        self.owner.links_changed(self, urgent=True)

    def _recovered(self, link: Link, _: None) -> None:
        log.info("link recovered", extra={"peer": self.peer, "relay": link.relay, "address": link.remote})
        if link.stale_since is not None:
            self.owner.renew(self, link)

    def _close_link(self, link: Link, cause: str) -> None:
        if cause != "retired":
            where = {"peer": self.peer, "relay": link.relay, "address": link.remote}
            log.info("link lost", extra={**where, "reason": "no answer"})
        if link.owner is not None:
            link.owner.close(reset=cause == "silent")
        self._take_down(link, "retired" if cause == "retired" else "relay_silent" if link.relay else "path_silent")

    def _stalled(self, cause: str, seconds: float) -> None:
        self.owner.stalled(self, cause, seconds)

    def _noted(self, _: Link, note: bytes) -> None:
        self.owner.noted(self, note)

    def _measured(self, link: Link, seconds: float) -> None:
        if link is self.session.active:
            waiters, self._pings = self._pings, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(seconds)

    def _ended(self, _: None, __: None) -> None:
        self.end("the peer ended the session", say=False)

    # ---------------------------------------------------------------- the end

    def broke(self) -> None:
        """A fault of ours: what the session knows cannot be trusted, the next one starts afresh."""
        self.end(BROKEN_STREAM.message, say=False)

    def end(self, reason: str, *, say: bool = True) -> None:
        """The session is over: its streams end with the reason, its links are closed."""
        if self.ended:
            return
        self.ended = reason
        self.owner.pairing_ended(self, reason)  # first: whoever sees a stream end finds the reason in the log
        if say:
            self.session.end(time.monotonic())
            for link in list(self.session.links):
                link.owner.pump()
        for stream in list(self.session.streams.values()):
            if stream.owner is not None:
                self.openings.closed(stream.owner, Reason(0, reason))
                stream.owner.close(reset=True)
        for link in list(self.session.links):
            if link in self.session.links:
                link.owner.close(reset=False)
        self.session.links.clear()
        for waiter in self._pings:
            if not waiter.done():
                waiter.set_exception(Refused(NO_PATH, f"the session with {self.peer} ended: {reason}"))
        self.session.discard()


_HANDLERS: dict[int, Callable[..., None]] = {
    events.OPENED: Pairing._opened,
    events.ACCEPTED: Pairing._accepted,
    events.FINISHED: Pairing._finished,
    events.RESET: Pairing._reset,
    events.CREDIT: Pairing._credit,
    events.DATAGRAM: Pairing._datagram,
    events.UNBLOCKED: Pairing._unblocked,
    events.LINK_READY: Pairing._link_ready,
    events.SWITCHED: Pairing._switched,
    events.SUSPECTED: Pairing._suspected,
    events.RECOVERED: Pairing._recovered,
    events.CLOSE_LINK: Pairing._close_link,
    events.STALLED: Pairing._stalled,
    events.NOTE: Pairing._noted,
    events.MEASURED: Pairing._measured,
    events.ENDED: Pairing._ended,
}
