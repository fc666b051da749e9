"""The session: the pairing of two nodes, which owns sequence numbers and streams and outlives its links.

The data's way. Out: the shell reads a client straight into `slot()`, says `commit()`; `flush()` seals what
has gathered into one record and puts it on the active link's queue. In: the shell hands every packet to
`receive()` and gets events, DATA among them as views into the opened record.

Five verbs, time always an argument: `receive`, `flush`, `tick`, `link_up`, `link_down`; the rest names what
streams do. Nothing here reads a clock, a socket or a key.
"""

from collections.abc import Sequence
from typing import Protocol

from services.tunnel.core import control, events, frames
from services.tunnel.core.absence import Absences
from services.tunnel.core.budget import Budget
from services.tunnel.core.control import Control
from services.tunnel.core.datagrams import Datagrams
from services.tunnel.core.events import Event
from services.tunnel.core.frames import FRAME, FRAME_SIZE, Opening, Reason
from services.tunnel.core.inbox import Inbox
from services.tunnel.core.link import SMALL_RECORD, Link, SessionCipher
from services.tunnel.core.outbox import MEMORY_SHARE, Outbox
from services.tunnel.core.packets import (
    CONTROL,
    DATAGRAM,
    HEADER,
    HEADER_SIZE,
    MAX_PLAIN,
    RECORD,
    TAG_SIZE,
    CorruptLink,
    ProtocolError,
)
from services.tunnel.core.stream import INITIAL_WINDOW, MAX_WINDOW, Stream

ACK_BYTES = 1024 * 1024
"""Bytes received after which an acknowledgement does not wait for company."""
REKEY_RECORDS = 1 << 22
"""Records under one key: well below the 2^24.5 that RFC 8446 §5.5 allows for AES-GCM with full records."""
REKEY_SECONDS = 3600.0
GATHER_KEPT = 1.0
"""Seconds for which the buffer where records gather stays with a session that sends nothing: taking one for every record
cost a tenth of a small record."""
REFUSED_LIMIT = 6
"""RefusalReason.LIMIT of protos/tunnel.proto."""


class Buffers(Protocol):
    """Where large buffers come from and return to."""

    def take(self, size: int) -> bytearray: ...

    def give(self, buffer: bytearray) -> None: ...


class Session(Datagrams):
    """See the module. `initiator` opens odd stream ids and alone retires surplus links.

    `capacity`: bytes of unacknowledged records; `max_streams`: open streams; `scratch`: a writable view of
    MAX_PLAIN bytes that may be shared by all sessions of a process, as events are used up before the next call.
    `budget` and `windows`: what all sessions of the node may take for records, and for windows above the initial one.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        cipher: SessionCipher,
        buffers: Buffers,
        scratch: memoryview,
        now: float,
        capacity: int = 16 * 1024 * 1024,
        max_streams: int = 16384,
        budget: Budget | None = None,
        windows: Budget | None = None,
        absences: Absences | None = None,
    ) -> None:
        outbox = Outbox(capacity, buffers.give, budget or Budget(capacity))
        inbox = Inbox(4 * capacity)
        super().__init__(initiator=initiator, outbox=outbox, inbox=inbox, absences=absences or Absences(), now=now)
        self.started = now
        self._cipher = cipher
        self._buffers = buffers
        self._scratch = scratch
        self._windows = windows or Budget(4 * MAX_WINDOW)
        self._max_streams = max_streams
        self._next_id = 1 if initiator else 2
        self._last_peer_id = 0
        self._buffer: bytearray | None = None
        self._view = scratch[:0]
        self._fill = 0
        self._sealed_at = now
        self._rekeyed_at = now
        self._rekeyed_sequence = 0

    # ---------------------------------------------------------------- streams, outbound

    def open(self, opening: Opening) -> Stream:
        """A new stream; data may be sent at once, before the exit accepts. OverflowError when a limit is reached."""
        if self.ended:
            raise OverflowError("the session has ended")
        if len(self.streams) >= self._max_streams:
            raise OverflowError(f"{self._max_streams} streams are open in this session")
        if self.outbox.memory > MEMORY_SHARE * self.outbox.capacity:
            raise OverflowError("the other node acknowledges nothing, and no more can be kept for it")
        payload = opening.encode()
        while self._next_id in self.streams:  # ids wrap, and this one has been open all the time
            self._next_id = (self._next_id + 2) & 0xFFFFFFFF
        stream = Stream(self._next_id, local=True, datagram=opening.network == frames.UDP)
        self._next_id = (self._next_id + 2) & 0xFFFFFFFF
        self.streams[stream.id] = stream
        self._frame(frames.OPEN, stream.id, payload)
        return stream

    def accept(self, stream: Stream) -> None:
        """The backend of a stream that the peer opened is connected."""
        stream.accepted = True
        self._frame(frames.ACCEPT, stream.id)

    def slot(self, stream: Stream) -> memoryview:
        """Where the next bytes of the stream go: at least 1 byte, not more than its credit. Then `commit`."""
        full = self.active.record_size if self.active is not None else SMALL_RECORD
        room = full - FRAME_SIZE - self._fill
        if room < 2048:
            self.flush(self.now)
            room = full - FRAME_SIZE
        if self._buffer is None:
            self._take_buffer()
        start = self._fill + FRAME_SIZE
        credit = stream.send_limit - stream.sent
        return self._view[start : start + (room if room < credit else credit)]

    def commit(self, stream: Stream, size: int) -> None:
        """`size` bytes were written into the slot."""
        FRAME.pack_into(self._view, self._fill, frames.DATA, stream.id, size)
        self._fill += FRAME_SIZE + size
        stream.sent += size
        self.bytes_out += size

    def send(self, stream: Stream, data: bytes | memoryview) -> int:
        """As slot and commit, for bytes at hand; returns how many the credit allowed."""
        sent = 0
        while sent < len(data) and stream.credit > 0:
            slot = self.slot(stream)
            size = min(len(slot), len(data) - sent)
            slot[:size] = data[sent : sent + size]
            self.commit(stream, size)
            sent += size
        return sent

    def finish(self, stream: Stream) -> None:
        """No more data from this side."""
        if not stream.fin_sent and stream.id in self.streams:
            stream.fin_sent = True
            self._frame(frames.FIN, stream.id)
            self._forget_finished(stream)

    def reset(self, stream: Stream, reason: Reason) -> None:
        """The stream is over in both directions; what is queued before still arrives."""
        if self._drop(stream.id):
            self._frame(frames.RESET, stream.id, reason.encode())

    def consumed(self, stream: Stream, size: int) -> None:
        """The local application took so many bytes; tells the peer when enough have gathered."""
        stream.consumed += size
        if stream.granted - stream.consumed > stream.window - (stream.window >> 2) or stream.fin_received:
            return
        if self.streams.get(stream.id) is not stream:
            return
        rtt = self.active.rtt if self.active is not None else 0.0
        windows, before = self._windows, stream.window
        limit = stream.grant(self.now, rtt, windows.limit - windows.used)
        windows.used += stream.window - before
        if limit is not None:
            self._frame(frames.WINDOW, stream.id, frames.encode_limit(limit))

    # ---------------------------------------------------------------- the five verbs

    def flush(self, now: float) -> None:
        """Seals what has gathered into one record and puts it on its way."""
        self.now = now
        if not self._fill:
            return
        if self.ended:
            self._drop_gathered()
            return
        size, self._fill = self._fill, 0
        cipher, outbox = self._cipher, self.outbox
        sequence = outbox.next_sequence
        if sequence - self._rekeyed_sequence >= REKEY_RECORDS or now - self._rekeyed_at > REKEY_SECONDS:
            cipher.rekey()
            self._rekeyed_sequence, self._rekeyed_at = sequence, now
        total = HEADER_SIZE + size + TAG_SIZE
        packet = self._buffers.take(total)
        view = memoryview(packet)
        HEADER.pack_into(packet, 0, RECORD, cipher.epoch, 0, size + TAG_SIZE, sequence)
        cipher.seal(sequence, view[:HEADER_SIZE], self._view[:size], view[HEADER_SIZE:total])
        self.used_at = self._sealed_at = now
        self._dispatch(outbox.add(packet, total), now)

    def receive(self, link: Link, header: memoryview, body: memoryview, now: float) -> list[Event]:
        """One packet from a link. CorruptLink: drop this link. ProtocolError: end the session."""
        self.now = now
        kind, epoch, _, length, number = HEADER.unpack(header)
        size = length - TAG_SIZE
        if not 0 <= size <= MAX_PLAIN:
            raise CorruptLink(f"packet of {length} bytes")
        plain = self._scratch[:size]
        out: list[Event] = []
        try:
            (self._cipher if kind == RECORD else link.cipher).open(epoch, number, header, body, plain)
        except Exception as error:
            raise CorruptLink(f"packet kind {kind} number {number} is not authentic") from error
        link.last_in = now
        link.bytes_in += length
        if not link.confirmed:
            if kind == RECORD:  # sealed by the session: whoever saw it before could send it again
                raise CorruptLink("a record came before anything that only the peer's end of this link can say")
            link.confirmed = True
            out.append((events.LINK_READY, link, None))
            self._elect(now, "link_up", out)
        if kind == RECORD:
            if link.heard_said == link.heard_in:
                link.owed_since = now
            link.heard_in += 1
            link.heard_at = now
            link.heard_bytes += length
            inbox = self.inbox
            if inbox.admit(number, plain):
                self._read_frames(plain, out)
                if inbox.held_bytes:
                    for early in inbox.ready():
                        self._read_frames(early, out)
            if link.heard_bytes >= ACK_BYTES:
                self._say(link)
            if self.outbox.overdrawn:
                raise ProtocolError("the peer makes us answer and acknowledges nothing")
            return out
        if number <= link.counter_in:
            raise CorruptLink("packet number went back")
        link.counter_in = number
        if kind == CONTROL:
            self._read_control(link, Control.decode(plain), out)
        elif kind == DATAGRAM:
            self._read_datagram(plain, out)
        else:
            raise CorruptLink(f"unknown packet kind {kind}")
        return out

    def tick(self, now: float) -> list[Event]:
        """What time brings: acknowledgements, pings, suspicion, closed links. Every 10 ms while `busy`, else every second."""
        self.now = now
        out: list[Event] = []
        self._tend(now, out)
        self._drain_late()
        if self._buffer is not None and not self._fill and now - self._sealed_at > GATHER_KEPT:
            self._drop_gathered()
        return out

    # ---------------------------------------------------------------- links

    def end(self, now: float) -> None:
        """Says goodbye on every link; the shell closes them after sending."""
        self.now = now
        self.flush(now)
        self.ended = True
        for link in self.links:
            self._say(link, control.END)

    def discard(self) -> None:
        """The session is over: gives its memory back and takes nothing more."""
        self.ended = True
        for link in self.links:
            link.drop(self.outbox)
        for stream_id in list(self.streams):
            self._drop(stream_id)
        self.outbox.discard()
        self._late.clear()
        self._drop_gathered()

    @property
    def gathered(self) -> bool:
        """Whether `flush` has something to seal."""
        return self._fill > 0

    def _drop_gathered(self) -> None:
        buffer, self._buffer = self._buffer, None
        self._fill = 0
        self._view = self._scratch[:0]
        if buffer is not None:
            self._buffers.give(buffer)

    def sent(self, link: Link, size: int) -> Sequence[Event]:
        """The shell handed so many bytes of the link's queue to the kernel."""
        link.backlog -= size
        link.bytes_out += size
        if self.handover is not None and self.handover.has_room:
            self._send_orphans(self.now)
        if not (self._was_blocked or self._late):
            return ()
        out: list[Event] = []
        if self._was_blocked:
            self._unblock(out)
        if self._late:
            self._drain_late()
        return out

    # ---------------------------------------------------------------- inside: sending

    def _take_buffer(self) -> None:
        self._buffer = self._buffers.take(MAX_PLAIN)
        self._view = memoryview(self._buffer)[:MAX_PLAIN]

    def _frame(self, kind: int, stream_id: int, payload: bytes = b"") -> None:
        if self.ended:
            return
        size = FRAME_SIZE + len(payload)
        if self._fill + size > MAX_PLAIN:
            self.flush(self.now)
        if self._buffer is None:
            self._take_buffer()
        at = self._fill
        FRAME.pack_into(self._view, at, kind, stream_id, len(payload))
        if payload:
            self._view[at + FRAME_SIZE : at + size] = payload
        self._fill = at + size

    def _forget_finished(self, stream: Stream) -> None:
        if stream.finished:
            self._drop(stream.id)

    def _drop(self, stream_id: int) -> bool:
        """The stream is over: its share of the windows is free. False when it was over already."""
        stream = self.streams.pop(stream_id, None)
        if stream is None:
            return False
        self._windows.used -= stream.window - INITIAL_WINDOW
        return True

    # ---------------------------------------------------------------- inside: receiving

    def _read_frames(self, plain: memoryview, out: list[Event]) -> None:
        at, end = 0, len(plain)
        streams = self.streams
        while at < end:
            if end - at < FRAME_SIZE:
                raise ProtocolError("a frame's header is cut off")
            kind, stream_id, size = FRAME.unpack_from(plain, at)
            start = at + FRAME_SIZE
            at = start + size
            if at > end:
                raise ProtocolError("a frame is longer than its record")
            stream = streams.get(stream_id)
            if stream is None:
                if kind == frames.OPEN:
                    self._read_open(stream_id, plain[start:at], out)
                elif not frames.OPEN < kind <= frames.WINDOW:
                    raise ProtocolError(f"unknown frame kind {kind}")
                continue
            if kind == frames.DATA:
                stream.received += size
                if stream.received > stream.granted or stream.fin_received:
                    raise ProtocolError(f"stream {stream_id} got more than its credit, or data after FIN")
                self.bytes_in += size
                out.append((events.DATA, stream, plain[start:at]))
            elif kind == frames.WINDOW:
                limit = frames.decode_limit(plain[start:at])
                if limit > stream.send_limit:
                    starved = stream.send_limit <= stream.sent
                    stream.send_limit = limit
                    if starved:
                        out.append((events.CREDIT, stream, None))
            elif kind == frames.FIN:
                if not stream.fin_received:
                    stream.fin_received = True
                    out.append((events.FINISHED, stream, None))
                    self._forget_finished(stream)
            elif kind == frames.ACCEPT:
                stream.accepted = True
                out.append((events.ACCEPTED, stream, None))
            elif kind == frames.RESET:
                self._drop(stream_id)
                out.append((events.RESET, stream, Reason.decode(bytes(plain[start:at]))))
            else:
                raise ProtocolError(f"unknown frame kind {kind}, or stream {stream_id} opened twice")
        self.used_at = self.now

    def _read_open(self, stream_id: int, payload: memoryview, out: list[Event]) -> None:
        ahead = (stream_id - self._last_peer_id) & 0xFFFFFFFF
        if not 0 < ahead < 0x80000000 or stream_id % 2 == self.initiator:
            raise ProtocolError(f"stream id {stream_id} is not the peer's to open")
        opening = Opening.decode(bytes(payload))
        self._last_peer_id = stream_id
        if len(self.streams) >= self._max_streams:
            reason = Reason(REFUSED_LIMIT, f"{self._max_streams} streams are open already")
            self._frame(frames.RESET, stream_id, reason.encode())
            return
        stream = Stream(stream_id, local=False, datagram=opening.network == frames.UDP)
        self.streams[stream_id] = stream
        out.append((events.OPENED, stream, opening))
