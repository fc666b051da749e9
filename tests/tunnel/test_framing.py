"""Every decoder takes every input: it parses it, or raises CorruptLink or ProtocolError, and remembers little."""

import asyncio
import random
import socket
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.tunnel.core import control, events, frames
from services.tunnel.core.control import Control
from services.tunnel.core.frames import FRAME, TCP, UDP, Opening, Reason
from services.tunnel.core.inbox import Inbox
from services.tunnel.core.link import DIRECT, Link
from services.tunnel.core.packets import (
    CONTROL,
    DATAGRAM,
    HEADER,
    HEADER_SIZE,
    MAX_BODY,
    RECORD,
    TAG_SIZE,
    CorruptLink,
    ProtocolError,
)
from services.tunnel.engine import Engine
from services.tunnel.linkio import LinkIO
from tests.tunnel.harness import End, Net, PlainCipher

quick = settings(max_examples=200, derandomize=True, database=None, deadline=None)
TEXT = st.text(max_size=200).filter(lambda text: len(text.encode()) <= frames.MAX_TEXT)


def packet(kind: int, number: int, plain: bytes, epoch: int = 0) -> bytes:
    """As the peer would seal it."""
    data = bytearray(HEADER_SIZE + len(plain) + TAG_SIZE)
    view = memoryview(data)
    HEADER.pack_into(data, 0, kind, epoch, 0, len(plain) + TAG_SIZE, number)
    PlainCipher().seal(number, view[:HEADER_SIZE], memoryview(plain), view[HEADER_SIZE:])
    return bytes(data)


def frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    return FRAME.pack(kind, stream, len(payload)) + payload


def lone() -> tuple[End, Link]:
    """One end with one confirmed link; the test is the peer (whose streams have odd ids)."""
    end = Net().b
    link = Link(1, DIRECT, PlainCipher(), end.net.now)
    end.session.link_up(link, end.net.now)
    feed(end, link, packet(CONTROL, 0, Control().encode()))
    return end, link


def feed(end: End, link: Link, data: bytes) -> list[events.Event]:
    view = memoryview(data)
    batch = end.session.receive(link, view[:HEADER_SIZE], view[HEADER_SIZE:], end.net.now)
    end.apply(batch)
    return batch


# ---------------------------------------------------------------- what is sent can be read


@pytest.mark.slow
@quick
@given(st.sampled_from([TCP, UDP]), TEXT, TEXT, TEXT, TEXT)
def test_openings_survive(network: int, address: str, service: str, traceparent: str, client: str) -> None:
    opening = Opening(network, address, service, traceparent, client)
    assert Opening.decode(opening.encode()) == opening


@quick
@given(st.integers(0, 255), TEXT)
def test_reasons_survive(code: int, message: str) -> None:
    decoded = Reason.decode(Reason(code, message).encode())
    assert decoded.code == code
    assert decoded.message == message or len(message.encode()) > 512


@quick
@given(
    st.builds(
        Control,
        st.integers(0, 255),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        st.integers(0, 0xFFFF),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=300),
    )
)
def test_controls_survive(message: Control) -> None:
    assert Control.decode(message.encode()) == message


# ---------------------------------------------------------------- what nobody sends does no harm


@quick
@given(st.binary(max_size=400))
def test_garbage_in_decoders(data: bytes) -> None:
    for decode in (Opening.decode, Reason.decode, Control.decode, frames.decode_limit):
        try:
            decode(memoryview(data) if decode is frames.decode_limit else data)
        except ProtocolError:
            pass


@quick
@given(st.data())
def test_openings_cut_short_or_with_other_sizes(data: st.DataObject) -> None:
    good = Opening(TCP, "127.0.0.1:80", "default/web", "00-1-2-01", "10.0.0.1:999").encode()
    spoilt = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if spoilt:
            spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    try:
        Opening.decode(bytes(spoilt))
    except ProtocolError:
        pass


@quick
@given(st.binary(min_size=HEADER_SIZE, max_size=300))
def test_garbage_as_packets_breaks_the_link_only(data: bytes) -> None:
    end, link = lone()
    with pytest.raises(CorruptLink):
        feed(end, link, data)


FRAMES = st.lists(
    st.builds(
        frame,
        st.integers(0, 8),
        st.integers(0, 9),
        st.one_of(
            st.binary(max_size=40),
            st.just(Opening(TCP, "x:1").encode()),
            st.just(Opening(UDP, "x:1").encode()),
            st.integers(0, 2**64 - 1).map(frames.encode_limit),
        ),
    ),
    max_size=12,
).map(b"".join)


@pytest.mark.slow
@quick
@given(st.lists(st.tuples(st.sampled_from([RECORD, RECORD, RECORD, CONTROL, DATAGRAM, 9]), FRAMES), max_size=12))
def test_an_authentic_peer_that_sends_nonsense_ends_in_protocol_error(sealed: list[tuple[int, bytes]]) -> None:
    end, link = lone()
    numbers = {RECORD: iter(range(100))}
    own = iter(range(1, 100))
    for kind, plain in sealed:
        try:
            feed(end, link, packet(kind, next(numbers.get(kind, own)), plain))
        except (CorruptLink, ProtocolError):
            return
        end.session.flush(end.net.now)
        end.session.tick(end.net.now)
        end.session.outbox.check_invariants()


@quick
@given(st.binary(max_size=64), st.integers(0, 300))
def test_frames_are_cut_anywhere(payload: bytes, cut: int) -> None:
    end, link = lone()
    opening = Opening(TCP, "127.0.0.1:80", "a/b", "t", "c").encode()
    plain = frame(frames.OPEN, 1, opening) + frame(frames.DATA, 1, payload) + frame(frames.FIN, 1)
    whole = cut >= len(plain)
    borders = {0, frames.FRAME_SIZE + len(opening), 2 * frames.FRAME_SIZE + len(opening) + len(payload)}
    try:
        feed(end, link, packet(RECORD, 0, plain[:cut]))
    except ProtocolError:
        assert not whole and cut not in borders
    else:
        assert whole or cut in borders


@pytest.mark.parametrize(
    ("what", "plain"),
    [
        ("more data than credit", frame(frames.OPEN, 1, Opening(TCP, "x:1").encode()) + 20 * frame(frames.DATA, 1, bytes(240_000))),
        ("data after the end", frame(frames.OPEN, 1, Opening(TCP, "x:1").encode()) + frame(frames.FIN, 1) + frame(frames.DATA, 1, b"x")),
        ("a stream id of ours", frame(frames.OPEN, 2, Opening(TCP, "x:1").encode())),
        ("a stream opened twice", 2 * frame(frames.OPEN, 1, Opening(TCP, "x:1").encode())),
        ("ids that go back", frame(frames.OPEN, 9, Opening(TCP, "x:1").encode()) + frame(frames.OPEN, 7, Opening(TCP, "x:1").encode())),
        ("an unknown frame", frame(99, 1)),
    ],
)  # fmt: skip
def test_offences_of_the_peer(what: str, plain: bytes) -> None:
    end, link = lone()
    end.slow.add(1)
    number = 0
    with pytest.raises(ProtocolError):
        for start in range(0, len(plain), 240_009):  # the first case is longer than a record; frames fit its borders
            feed(end, link, packet(RECORD, number, plain[start : start + 240_009] if len(plain) > 250_000 else plain))
            number += 1


def test_more_was_heard_or_acknowledged_than_was_sent() -> None:
    end, link = lone()
    with pytest.raises(CorruptLink):
        feed(end, link, packet(CONTROL, 1, Control(heard=5).encode()))
    end, link = lone()
    with pytest.raises(ProtocolError):
        feed(end, link, packet(CONTROL, 1, Control(acked=5).encode()))


def test_a_record_alone_does_not_prove_that_the_peer_is_there() -> None:
    """Records are sealed by the session and may have been recorded from another link."""
    end = Net().b
    link = Link(1, DIRECT, PlainCipher(), end.net.now)
    end.session.link_up(link, end.net.now)
    with pytest.raises(CorruptLink):
        feed(end, link, packet(RECORD, 0, b""))
    assert not link.confirmed and end.session.active is None


def test_own_packets_of_a_link_do_not_come_twice() -> None:
    end, link = lone()
    feed(end, link, packet(CONTROL, 5, Control().encode()))
    for number in (5, 4):
        with pytest.raises(CorruptLink):
            feed(end, link, packet(CONTROL, number, Control().encode()))


# ---------------------------------------------------------------- memory


def test_records_that_come_early_are_bounded_however_small() -> None:
    inbox = Inbox(1 << 20)
    tracemalloc.start()
    with pytest.raises(CorruptLink):
        for sequence in range(1, 1 << 20):
            inbox.admit(sequence, memoryview(b"12345678"))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 3 << 20


def test_a_peer_that_asks_and_never_reads_is_not_answered_for_ever() -> None:
    end, link = lone()
    for number in range(1, 20_000):
        feed(end, link, packet(CONTROL, number, Control(flags=control.PING).encode()))
    assert link.backlog < 1 << 20


@pytest.mark.slow
def test_a_peer_that_opens_and_never_acknowledges_is_sent_away() -> None:
    net = Net(capacity=1 << 20, max_streams=1)
    end = net.b
    link = Link(1, DIRECT, PlainCipher(), net.now)
    end.session.link_up(link, net.now)
    feed(end, link, packet(CONTROL, 0, Control().encode()))
    opening = Opening(TCP, "x:1").encode()
    with pytest.raises(ProtocolError, match="acknowledges nothing"):
        for number in range(100_000):
            feed(end, link, packet(RECORD, number, frame(frames.OPEN, number * 2 + 1, opening)))
            end.session.flush(net.now)
    assert end.session.outbox.memory < 16 << 20


# ---------------------------------------------------------------- from a socket: whole, byte by byte, every split


class Listener:
    """What a LinkIO tells its pairing."""

    def __init__(self, end: End) -> None:
        self.peer = "peer"
        self.ended = ""
        self.session = end.session
        self.batch: list[tuple[int, object]] = []
        self.lost: list[str] = []

    def apply(self, batch: list[events.Event]) -> None:
        for kind, subject, detail in batch:
            if kind == events.DATA:
                self.session.consumed(subject, len(detail))
            self.batch.append((kind, bytes(detail) if isinstance(detail, memoryview) else detail))

    def look(self) -> None:
        pass

    def lose(self, io: LinkIO, cause: str) -> None:
        io.close()
        self.lost.append(cause)

    def end(self, reason: str) -> None:
        self.ended = reason

    def broke(self) -> None:
        self.end("broken")


class Receiver:
    """A real LinkIO on a real socket, in a session of its own."""

    def __init__(self, engine: Engine) -> None:
        self.end = Net().b
        self.link = Link(1, DIRECT, PlainCipher(), self.end.net.now)
        self.end.session.link_up(self.link, self.end.net.now)
        self.pairing = Listener(self.end)
        self.far, near = socket.socketpair()
        near.setblocking(False)
        self.io = LinkIO(engine, self.pairing, self.link, near)  # type: ignore[arg-type]

    def give(self, *chunks: bytes) -> None:
        for chunk in chunks:
            self.far.sendall(chunk)
            self.io._ready(1)

    def close(self) -> None:
        self.far.close()
        self.io.close()


@pytest.fixture
async def engine() -> Iterator[Engine]:
    one = Engine()
    yield one
    one.close()


def conversation() -> tuple[bytes, list[tuple[int, object]]]:
    """Bytes of a short talk, and what must come of it."""
    opening = Opening(TCP, "127.0.0.1:80", "default/web")
    flow = Opening(UDP, "127.0.0.1:53")
    data = b"".join(
        [
            packet(CONTROL, 0, Control(flags=control.PING, stamp=7).encode()),
            packet(RECORD, 0, frame(frames.OPEN, 1, opening.encode()) + frame(frames.DATA, 1, b"hello")),
            packet(RECORD, 1, frame(frames.OPEN, 3, flow.encode())),
            packet(DATAGRAM, 1, (3).to_bytes(4) + (1).to_bytes(4) + b"query"),
            packet(RECORD, 2, frame(frames.FIN, 1)),
        ]
    )
    return data, [
        (events.LINK_READY, None),
        (events.SWITCHED, "link_up"),
        (events.OPENED, opening),
        (events.DATA, b"hello"),
        (events.OPENED, flow),
        (events.DATAGRAM, b"query"),
        (events.FINISHED, None),
    ]


async def test_whole_byte_by_byte_and_every_split(engine: Engine) -> None:
    data, expected = conversation()
    cuts = [[data], [data[at : at + 1] for at in range(len(data))]]
    cuts += [[data[:at], data[at:]] for at in range(1, len(data))]
    for chunks in cuts:
        receiver = Receiver(engine)
        receiver.give(*chunks)
        assert receiver.pairing.batch == expected
        assert not receiver.pairing.lost and receiver.io._buffer is None, "an idle link keeps no buffer"
        receiver.close()


async def test_random_splits_of_large_records(engine: Engine) -> None:
    dice = random.Random(5)
    opening = frame(frames.OPEN, 1, Opening(TCP, "x:1").encode())
    blocks = [dice.randbytes(size) for size in (240_000, 1, 100_000, 65_519, 65_536, 200_000)]
    data = packet(CONTROL, 0, Control().encode()) + packet(RECORD, 0, opening)
    data += b"".join(packet(RECORD, 1 + n, frame(frames.DATA, 1, block)) for n, block in enumerate(blocks))
    for _ in range(10):
        receiver = Receiver(engine)
        at = 0
        while at < len(data):
            size = dice.choice([1, 15, 16, 17, 1000, 30_000, 100_000])
            receiver.give(data[at : at + size])
            at += size
        assert [detail for kind, detail in receiver.pairing.batch if kind == events.DATA] == blocks
        receiver.close()


async def test_garbage_from_a_socket_loses_the_link_and_nothing_else(engine: Engine) -> None:
    dice = random.Random(6)
    good, _ = conversation()
    for _ in range(300):
        receiver = Receiver(engine)
        garbage = dice.randbytes(dice.randint(1, 100))
        receiver.give(good[: dice.choice([0, 60, len(good)])], garbage)
        if not receiver.pairing.lost:
            receiver.far.close()
            receiver.io._ready(1)
        assert len(receiver.pairing.lost) == 1 and not receiver.pairing.ended
        receiver.close()


async def test_an_oversized_packet_is_refused_by_its_header(engine: Engine) -> None:
    receiver = Receiver(engine)
    receiver.give(HEADER.pack(RECORD, 0, 0, MAX_BODY + 1, 0))
    assert receiver.pairing.lost == [f"packet of {MAX_BODY + 1} bytes"]
    receiver.close()


async def test_an_offence_ends_the_session(engine: Engine) -> None:
    receiver = Receiver(engine)
    receiver.give(packet(CONTROL, 0, Control().encode()) + packet(RECORD, 0, frame(99, 1)))
    assert "violated the protocol" in receiver.pairing.ended
    receiver.close()


async def test_the_engine_drives_it(engine: Engine) -> None:
    data, expected = conversation()
    receiver = Receiver(engine)
    receiver.far.sendall(data)
    async with asyncio.timeout(20):
        while receiver.pairing.batch != expected:  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.001)
    receiver.close()
