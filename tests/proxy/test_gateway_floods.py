"""HTTP/2 at the gateway from clients that mean harm, and over all ways to cut or spoil the bytes."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from h2.errors import ErrorCodes
from hpack import Encoder

from services.proxy.core import http2 as frames
from services.proxy.core.gateway import floods
from services.proxy.core.gateway.floods import Floods
from services.proxy.core.http2 import Frame, Frames
from services.proxy.gateway import http2 as module
from services.proxy.gateway import limits, link
from tests.proxy import http2
from tests.proxy.conftest import until
from tests.proxy.http2 import HELLO, Client, frame
from tests.proxy.ingress import Ingress, gateway, route, routes, server
from tests.proxy.neighbours import service

pytestmark = pytest.mark.slow  # all together

HEADERS, CONTINUATION = 1, 9
BLOCK = b"\x82\x86\x84\x41\x06a.test"  # GET http://a.test/


@pytest.fixture
async def two(ingress: Ingress) -> AsyncIterator[http2.Backend]:
    made = http2.Backend(ingress.loopback_ip())
    await made.start()
    ingress.node.discovery.put(service("two", "", ("n", made.ip, made.port), name_of_port="http2"))
    await ingress.set(gateway(server(8080)), routes(route("two")))
    yield made
    front = ingress.front
    await until(lambda: not len(front) and not front._shared.busy, "nobody is left")
    client = await Client.open(ingress.ip, 8080)
    assert (await client.get("/after")).status == 200, "the others are served as ever"
    client.writer.close()
    await made.stop()


def goodbyes(data: bytes) -> list[int]:
    """Error codes of GOAWAYs in what a server said."""
    return [
        int.from_bytes(one.payload[4:8]) for one in Frames(preface=False).receive(data) if one.kind == frames.GOAWAY
    ]


async def said(ingress: Ingress, *pieces: bytes) -> bytes:
    """What a client hears that says so and reads to the end; it ends its own side at the end."""
    reader, writer = await asyncio.open_connection(ingress.ip, 8080)
    data = b""
    try:
        async with asyncio.timeout(60):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            writer.write_eof()
            while more := await reader.read(1 << 16):
                data += more
    except OSError:
        pass
    finally:
        writer.close()
    return data


def opened(number: int) -> bytes:
    return frame(HEADERS, number, BLOCK, 0x5)


FLOODS = {
    "pings": frame(6, 0, bytes(8)) * 3000,
    "settings": frame(4, 0) * 3000,
    "priorities": frame(2, 1, bytes((0, 0, 0, 0, 1))) * 3000,
    "unknown": frame(0xFA, 0, b"grease") * 3000,
    "empty data": frame(HEADERS, 1, BLOCK, 0x4) + frame(0, 1) * 3000,
    "windows": opened(1) + frame(8, 0, b"\0\0\0\1") * 3000,
    "resets": b"".join(opened(number) + frame(3, number, b"\0\0\0\x08") for number in range(1, 1001, 2)),
    "continuations": frame(HEADERS, 1, BLOCK, 0x1) + frame(CONTINUATION, 1, b"\x00\x01a\x01b") * 100,
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_floods_are_answered_by_a_goodbye(ingress: Ingress, two: http2.Backend, kind: str) -> None:
    data = await said(ingress, HELLO + FLOODS[kind])
    assert goodbyes(data) == [ErrorCodes.ENHANCE_YOUR_CALM]
    assert two.requests.total() <= floods.RESET_BURST


async def test_a_rapid_reset_asks_no_backend(ingress: Ingress, two: http2.Backend) -> None:
    """CVE-2023-44487: what is taken back at once is not begun."""
    hurry = b"".join(opened(number) + frame(3, number, b"\0\0\0\x08") for number in range(1, 101, 2))
    await said(ingress, HELLO + hurry)
    assert not two.requests


SPOILT = {
    "no settings first": http2.PREFACE + opened(1),
    "too long a frame": HELLO + b"\xff\xff\xff\1\5\0\0\0\1",
    "no hpack": HELLO + frame(HEADERS, 1, b"\xff" * 20, 0x5),
    "a bomb": HELLO + frame(HEADERS, 1, b"\x40\x01a\x7f\xa1\x1e" + b"a" * 4000 + b"\xbe" * 12_000, 0x5),
    "an even stream": HELLO + opened(2),
    "data of nothing": HELLO + frame(0, 1, b"x"),
    "a push": HELLO + frame(5, 1, b"\0\0\0\2" + BLOCK, 0x4),
    "amid a head": HELLO + frame(HEADERS, 1, BLOCK, 0x1) + frame(6, 0, bytes(8)),
    "a window of nothing": HELLO + frame(8, 0, bytes(4)),
    "settings that are none": HELLO + frame(4, 0, b"\0\2\0\0\0\7"),
}


@pytest.mark.parametrize("kind", SPOILT)
async def test_what_breaks_the_protocol_ends_the_connection(ingress: Ingress, two: http2.Backend, kind: str) -> None:
    data = await said(ingress, SPOILT[kind])
    assert len(goodbyes(data)) == 1 and goodbyes(data) != [0]
    assert not two.requests


async def test_more_streams_than_allowed(ingress: Ingress, two: http2.Backend) -> None:
    fields = [(":method", "GET"), (":scheme", "http"), (":path", "/slow"), (":authority", "a.test")]
    encoder = Encoder()
    data = HELLO + b"".join(frame(HEADERS, number, encoder.encode(fields), 0x5) for number in range(1, 401, 2))
    assert goodbyes(await said(ingress, data)) == [ErrorCodes.PROTOCOL_ERROR]
    assert two.connections <= link.MAX_STREAMS


@pytest.mark.parametrize("bound", ["MAX_BUSY", "MAX_BUSY_EACH"])
async def test_more_streams_than_clients_may_have(
    ingress: Ingress, two: http2.Backend, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(module, bound, 3)
    client = await Client.open(ingress.ip, 8080)
    asked = [client.ask("/slow") for _ in range(4)]
    await client.hear(lambda: client.told[asked[3]].over)
    assert client.told[asked[3]].reset == ErrorCodes.REFUSED_STREAM
    client.writer.close()


@pytest.mark.parametrize(
    "fields",
    [
        [("x", "a\r\ny: b")],
        [("x", "a\0b")],
        [("x y", "a")],
        [("x", "y" * 70_000)],
        [(":path", "/a b")],
        [(":path", "/ HTTP/1.1\r\nx: y")],
        [(":path", "no")],
        [(":method", "GET / HTTP/1.1\r\nx:")],
        [(":authority", "a.test/x?")],
        [(":authority", "u@a.test")],
        [("transfer-encoding", "chunked")],
        [("connection", "x")],
        [("X-Upper", "x")],
        [("content-length", "5")],
        [("content-length", "5"), ("content-length", "6")],
        [("host", "other.test")],
    ],
    ids=lambda fields: repr(fields)[:30],
)
async def test_what_is_no_good_request_reaches_nobody(
    ingress: Ingress, two: http2.Backend, fields: list[tuple[str, str]]
) -> None:
    """Nor hides another one, whatever the backend speaks."""
    await ingress.backend("one")
    await ingress.set(routes(route("two", "/two"), route("one")))
    for path in ("/", "/two"):
        base = {":method": "GET", ":scheme": "http", ":path": path, ":authority": "a.test"}
        pseudo = base | {name: value for name, value in fields if name.startswith(":")}
        block = Encoder().encode([*pseudo.items(), *(one for one in fields if not one[0].startswith(":"))])
        first, *rest = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
        pieces = [frame(HEADERS, 1, first, 0x1 | (0 if rest else 0x4))]
        pieces += [frame(CONTINUATION, 1, one, 0x4 if one is rest[-1] else 0) for one in rest]
        data = await said(ingress, HELLO, *pieces)
        assert b"x-backend" not in data
    assert not two.requests and not ingress.backends["one"].requests


async def test_a_head_that_drips_is_not_waited_for_without_end(
    ingress: Ingress, two: http2.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KEEP_ALIVE", 0.3)
    for begun in (b"PRI * HT", HELLO, HELLO + opened(1)[:12], HELLO + frame(HEADERS, 1, BLOCK, 0x1)):
        reader, writer = await asyncio.open_connection(ingress.ip, 8080)
        writer.write(begun)
        async with asyncio.timeout(60):
            while await reader.read(1000):
                pass
        writer.close()


async def test_every_cut_of_a_conversation_is_one_conversation(ingress: Ingress, two: http2.Backend) -> None:
    body = frame(HEADERS, 1, b"\x83\x86\x44\x02/x\x41\x06a.test", 0x4) + frame(0, 1, b"abc", 0x1)
    whole = HELLO + body + frame(6, 0, b"12345678") + opened(3)

    async def talk(*pieces: bytes) -> None:
        reader, writer = await asyncio.open_connection(ingress.ip, 8080)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        data = b""
        async with asyncio.timeout(60):
            while data.count(b"x-forwarded-proto") < 2:
                data += await reader.read(1 << 16)
        writer.close()

    for at in range(1, len(whole)):
        await talk(whole[:at], whole[at:])
    await talk(*(bytes((byte,)) for byte in whole))
    assert two.requests == {"/x": len(whole), "/": len(whole)}


async def test_rubbish_harms_nobody(ingress: Ingress, two: http2.Backend, caplog: pytest.LogCaptureFixture) -> None:
    """Frames of every kind with every flag, and conversations with a byte that is another one."""
    rng = random.Random(1)
    good = HELLO + frame(HEADERS, 1, BLOCK, 0x4) + frame(0, 1, b"abc", 0x1) + opened(3) + frame(8, 0, b"\0\0\1\0")
    for turn in range(400):
        if turn % 2:
            data = bytearray(good)
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(24, len(data))] = rng.randrange(256)
        else:
            data = bytearray(HELLO + opened(1))
            for _ in range(rng.randint(1, 20)):
                payload = rng.randbytes(rng.choice((0, 4, 5, 6, 8, 50)))
                data += frame(rng.randrange(11), rng.choice((0, 1, 3, 5)), payload, rng.randrange(256))
        await said(ingress, bytes(data))
    assert not [one for one in caplog.records if one.levelname == "ERROR" and one.name.startswith("causeway")]


# ── pure ──


def test_frames_are_the_same_however_they_are_cut() -> None:
    data = HELLO + opened(1) + frame(0, 1, b"x" * 100) + frame(0, 1)
    whole = [one for one in Frames(preface=True).receive(data) if one.data]
    assert [(one.kind, one.stream, len(one.payload)) for one in whole] == [
        (4, 0, 0),
        (1, 1, 11),
        (0, 1, 100),
        (0, 1, 0),
    ]
    for at in range(len(data)):
        cut = Frames(preface=True)
        assert [one for part in (data[:at], data[at:]) for one in cut.receive(part) if one.data] == whole


def test_a_client_in_good_faith_is_no_flood() -> None:
    """A minute of downloads and pings, and requests that are taken back now and then."""
    calm, window, ping = Floods(0.0), Frame(8, 0, 0, bytes(13)), Frame(6, 0, 0, bytes(17))
    for second in range(60):
        for _ in range(1000):
            calm.sent(second)
            assert calm.received(window, second) and calm.received(window, second)
        assert all(calm.received(ping, second) for _ in range(20))
        assert all(calm.received(Frame(3, 0, 1, bytes(13)), second) for _ in range(10))


def test_a_head_in_pieces_is_bounded_and_the_next_one_starts_anew() -> None:
    calm = Floods(0.0)
    for _ in range(3):
        assert calm.received(Frame(HEADERS, 0, 1, bytes(10)), 0.0)
        piece = Frame(CONTINUATION, 0, 1, bytes(10))
        assert all(calm.received(piece, 0.0) for _ in range(floods.MAX_CONTINUED))
    assert not calm.received(piece, 0.0)
