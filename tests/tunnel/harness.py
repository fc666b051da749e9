"""Two session cores wired to each other in memory, with links that can be cut, silenced and delayed. Fake time."""

import random
from collections import deque
from struct import Struct

from services.tunnel.core import events
from services.tunnel.core.frames import TCP, UDP, Opening
from services.tunnel.core.link import RELAYED, Link
from services.tunnel.core.packets import HEADER, HEADER_SIZE, MAX_PLAIN, CorruptLink
from services.tunnel.core.session import Session
from services.tunnel.core.stream import Stream

_TAG = Struct("!QQ")


class PlainCipher:
    """Copies, and puts a tag that depends on number, header and content: enough to catch a mix-up."""

    def __init__(self) -> None:
        self.epoch = 0

    def rekey(self) -> None:
        self.epoch = (self.epoch + 1) & 0xFF

    @staticmethod
    def _tag(number, header, plain):
        return _TAG.pack(number, hash((bytes(header), bytes(plain))) & 0xFFFFFFFFFFFFFFFF)

    def seal(self, number, header, plain, out):
        out[: len(plain)] = plain
        out[len(plain) :] = self._tag(number, header, plain)

    def open(self, epoch, number, header, body, out):
        out[:] = body[:-16]
        if self._tag(number, header, out) != bytes(body[-16:]):
            raise ValueError("bad tag")


class Heap:
    """Buffers that are poisoned when given back, so that use after release is seen."""

    def take(self, size):
        return bytearray(size)

    def give(self, buffer):
        buffer[:] = b"\xee" * len(buffer)


class Wire:
    """One direction of a link: bytes with a delay, and a rate if it has one; may be cold, silenced (bytes wait) or cut."""

    BUFFER = 256 * 1024
    """Bytes that a wire with a rate takes before its end must wait."""
    SEGMENT = 1460

    def __init__(self, delay: float, rate: float = 0.0, window: int = 0) -> None:
        self.delay = delay
        self.rate = rate
        """Bytes per second; 0: any number."""
        self.free_at = 0.0
        self.window = window
        """Segments that may be on their way, each that arrives is one more (TCP's slow start); 0: any number."""
        self.round_trip = 2 * delay
        """Of its TCP, seconds."""
        self.unsent = b""
        self.unheard: deque[float] = deque()
        """When the other end's acknowledgement of each segment will be here."""
        self.silent = False
        self.queue: deque[tuple[float, bytes]] = deque()
        self.partial = b""

    def send(self, data: bytes, now: float) -> None:
        if self.window:
            self.unsent += data
            self.fly(now)
            return
        if self.rate:
            self.free_at = max(self.free_at, now) + len(data) / self.rate
        self.queue.append((max(now, self.free_at) + self.delay, data))

    def mend(self, now: float) -> None:
        """No longer silent; what waits is sent at the wire's rate."""
        self.silent = False
        if self.rate:
            waiting, self.queue, self.free_at = self.queue, deque(), now
            for _, data in waiting:
                self.send(data, now)

    def fly(self, now: float) -> None:
        """As much of what waits as the window allows."""
        while self.unheard and self.unheard[0] <= now:
            self.unheard.popleft()
            self.window += 1
        while self.unsent and len(self.unheard) < self.window:
            self.queue.append((now + self.delay, self.unsent[: self.SEGMENT]))
            self.unheard.append(now + self.round_trip)
            self.unsent = self.unsent[self.SEGMENT :]


class End:
    """One node: its session, and what its applications saw."""

    def __init__(self, name: str, initiator: bool, net: "Net", **options) -> None:
        self.name = name
        self.net = net
        self.session = Session(
            initiator=initiator,
            cipher=PlainCipher(),
            buffers=Heap(),
            scratch=memoryview(bytearray(MAX_PLAIN)),
            now=net.now,
            **options,
        )
        self.got: dict[int, bytearray] = {}
        self.datagrams: dict[int, list[bytes]] = {}
        self.streams: dict[int, Stream] = {}
        self.seen: list[tuple] = []
        self.finished: set[int] = set()
        self.slow: set[int] = set()
        """Streams whose application does not read."""

    def open(self, network=TCP) -> Stream:
        stream = self.session.open(Opening(network, "127.0.0.1:80"))
        self.streams[stream.id] = stream
        return stream

    def open_udp(self) -> Stream:
        return self.open(UDP)

    def apply(self, batch) -> None:
        for kind, subject, detail in batch:
            if kind == events.DATA:
                self.got.setdefault(subject.id, bytearray()).extend(detail)
                if subject.id not in self.slow:
                    self.session.consumed(subject, len(detail))
            elif kind == events.DATAGRAM:
                self.datagrams.setdefault(subject.id, []).append(bytes(detail))
            elif kind == events.OPENED:
                self.streams[subject.id] = subject
                self.session.accept(subject)
                self.seen.append((kind, subject.id, detail))
            elif kind == events.FINISHED:
                self.finished.add(subject.id)
            elif kind == events.CLOSE_LINK:
                self.net.cut(subject.owner, cause=detail)
            else:
                self.seen.append((kind, getattr(subject, "id", subject), detail))

    def kinds(self):
        return [kind for kind, _, _ in self.seen]


class Net:
    """The world: two ends, links between them, and the clock."""

    def __init__(self, seed: int = 0, **options) -> None:
        self.now = 1000.0
        self.random = random.Random(seed)
        self.a = End("a", True, self, **options)
        self.b = End("b", False, self, **options)
        self.pipes: dict[int, tuple[Link, Link, Wire, Wire]] = {}
        self._next = 1
        self._parting: dict[int, tuple[float, End]] = {}
        """Links that one end has given up: when the other one (named here) learns of it."""

    def link(self, delay=0.02, kind=RELAYED, relay="r1", rate=0.0, window=0) -> int:
        number = self._next
        self._next += 1
        pair = [Link(number, kind, PlainCipher(), self.now, relay=relay) for _ in "ab"]
        for link in pair:
            link.owner = number
        self.pipes[number] = (pair[0], pair[1], Wire(delay, rate, window), Wire(delay, rate, window))
        self.a.session.link_up(pair[0], self.now)
        self.b.session.link_up(pair[1], self.now)
        return number

    def cut(self, number: int, cause="reset") -> None:
        """Reset: what is on the wire is lost, both ends know at once."""
        pipe = self.pipes.pop(number, None)
        if pipe is None:
            return
        self.a.apply(self.a.session.link_down(pipe[0], self.now, cause))
        self.b.apply(self.b.session.link_down(pipe[1], self.now, cause))

    def part(self, number: int, end: End, after: float) -> None:
        """One end's socket dies now; what it had sent still arrives, and the other end learns of it `after` seconds."""
        if number in self._parting:
            return
        link_a, link_b, to_b, to_a = self.pipes[number]
        link, inbound, other = (link_a, to_a, self.b) if end is self.a else (link_b, to_b, self.a)
        self._parting[number] = (self.now + after, other)
        inbound.silent = True
        end.apply(end.session.link_down(link, self.now, "reset"))

    def silence(self, number: int, silent=True, ways=(True, True)) -> None:
        """Blackhole: nothing arrives, nobody is told; bytes wait as in TCP."""
        for wire, way in zip(self.pipes[number][2:], ways, strict=True):
            if way and silent:
                wire.silent = True
            elif way:
                wire.mend(self.now)

    def relay_dies(self, relay: str) -> None:
        for number, pipe in list(self.pipes.items()):
            if pipe[0].relay == relay:
                self.cut(number)

    def _pump(self, end: End, link: Link, wire: Wire) -> None:
        room = 4 << 20
        if wire.silent and sum(len(data) for _, data in wire.queue) > room:
            return
        wire.fly(self.now)
        while link.queue:
            if len(wire.unsent) >= end.session.at_hand(link) or (
                wire.rate and (wire.free_at - self.now) * wire.rate > wire.BUFFER
            ):
                return
            view, record = link.queue.popleft()
            wire.send(bytes(view), self.now)
            if record is not None:
                record.queued -= 1
                end.session.outbox.forget(record)
            end.apply(end.session.sent(link, len(view)))

    def _deliver(self, end: End, link: Link, wire: Wire) -> None:
        while wire.queue and wire.queue[0][0] <= self.now and not wire.silent:
            wire.partial += wire.queue.popleft()[1]
            while len(wire.partial) >= HEADER_SIZE:
                length = HEADER.unpack_from(wire.partial)[3]
                if len(wire.partial) < HEADER_SIZE + length:
                    break
                packet = memoryview(wire.partial)[: HEADER_SIZE + length]
                wire.partial = wire.partial[HEADER_SIZE + length :]
                try:
                    batch = end.session.receive(link, packet[:HEADER_SIZE], packet[HEADER_SIZE:], self.now)
                except CorruptLink:
                    self.cut(link.owner, "corrupt")
                    return
                end.apply(batch)
                if link.owner not in self.pipes:
                    return

    def step(self) -> None:
        for end in (self.a, self.b):
            end.session.flush(self.now)
        for number, (when, other) in list(self._parting.items()):
            if number not in self.pipes or when <= self.now:
                del self._parting[number]
                if number in self.pipes:
                    link = self.pipes.pop(number)[0 if other is self.a else 1]
                    other.apply(other.session.link_down(link, self.now, "closed"))
        for number, (link_a, link_b, to_b, to_a) in list(self.pipes.items()):
            self._pump(self.a, link_a, to_b)
            self._pump(self.b, link_b, to_a)
            self._deliver(self.b, link_b, to_b)
            if number in self.pipes:
                self._deliver(self.a, link_a, to_a)

    def run(self, seconds: float, tick=0.01) -> None:
        """Lets time pass."""
        end = self.now + seconds
        while self.now < end:
            self.step()
            self.now += tick
            for side in (self.a, self.b):
                side.apply(side.session.tick(self.now))
                side.session.outbox.check_invariants()
        self.step()
