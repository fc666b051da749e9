"""The gate before the public server: who is let in, who makes room, and that bytes go through as they are."""

import asyncio
import contextlib
import hashlib
import logging
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.discovery import gate
from services.discovery.gate import Gate, judge
from services.discovery.inquiry import Desk
from services.runtime.dial import DIAGNOSIS
from services.runtime.tls import TlsEndpoint
from tests.runtime.nodes import identity

from .nodes import PATIENCE, until

HELLO = b"\x16\x03\x01\x00\x08\x01hello!!"


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_the_verdict_does_not_depend_on_how_the_bytes_arrive(head: bytes, tail: bytes) -> None:
    for data in (head + tail, HELLO[: len(head)] + tail):
        whole = judge(data)
        seen = [judge(data[:end]) for end in range(len(data) + 1)]
        decided = [verdict for verdict in seen if verdict is not None]
        assert all(verdict == whole for verdict in decided)


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (b"", None),
        (HELLO, True),
        (HELLO + b"more", True),
        (HELLO[:-1], None),
        (b"GET / HTTP/1.1", False),
        (b"\x16\x02", False),
        (b"\x16\x03\x05", False),
        (b"\x16\x03\x01\x00\x00", False),
        (b"\x16\x03\x01\x40\x01", False),
        (b"\x16\x03\x01\x40\x00", None),
    ],
)
def test_a_visitor_begins_with_a_handshake_record(data: bytes, verdict: bool | None) -> None:
    assert judge(data) is verdict


class Rig:
    """A gate with an echo server behind it."""

    def __init__(self, folder: Path, ip: str) -> None:
        self.backend = folder / "b.sock"
        self.ip = ip
        self.counts: Counter[tuple[str, str]] = Counter()
        self.desk = Desk(identity(folder, "r"), logging.getLogger("causeway.gate"))
        self.gate = Gate(self.backend, self.counts, self.desk)
        self.clients: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write(b"end")
        writer.close()

    async def connect(self, source: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client, from that local address."""
        client = await asyncio.open_connection(self.ip, 20008, local_addr=(source, 0) if source else None)
        self.clients.append(client)
        return client


@pytest.fixture
async def rig(short_path: Path, loopback_ip: Callable[[], str]) -> AsyncIterator[Rig]:
    made = Rig(short_path, loopback_ip())
    server = await asyncio.start_unix_server(made.echo, made.backend)
    await made.gate.open(made.ip, 20008)
    yield made
    for _, writer in made.clients:
        writer.close()
    await made.gate.close()
    server.close()


async def closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE) == b""
    except ConnectionError:
        return True


async def test_bytes_go_through_both_ways_with_half_close(rig: Rig) -> None:
    data = HELLO + random.Random(1).randbytes(8 << 20)
    reader, writer = await rig.connect()

    async def send() -> None:
        for start in range(0, len(data), 100_001):
            writer.write(data[start : start + 100_001])
            await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    back = await asyncio.wait_for(reader.read(), PATIENCE)
    await sending
    assert hashlib.sha256(back).digest() == hashlib.sha256(data + b"end").digest()


async def test_a_slow_hello_is_let_in_byte_by_byte(rig: Rig) -> None:
    reader, writer = await rig.connect()
    for byte in HELLO:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.001)
    assert await asyncio.wait_for(reader.readexactly(len(HELLO)), PATIENCE) == HELLO


async def test_what_is_no_tls_is_shown_the_door(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert await closed(reader)
    assert rig.counts == {("visitors", "refused"): 1}


async def test_silence_is_ended(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "HELLO_TIMEOUT", 0.1)
    reader, _ = await rig.connect()
    assert await closed(reader)
    assert not rig.gate.waiting


async def test_the_longest_waiting_makes_room(rig: Rig) -> None:
    rig.gate.waiting.adjust(2, 2)
    first, second, third = [await rig.connect() for _ in range(3)]
    assert await closed(first[0])
    for reader, writer in (second, third):
        writer.write(HELLO)
        assert await asyncio.wait_for(reader.readexactly(len(HELLO)), PATIENCE) == HELLO


async def test_the_least_active_makes_room(rig: Rig) -> None:
    rig.gate.inside.adjust(2, 2)

    async def say(client: tuple[asyncio.StreamReader, asyncio.StreamWriter], data: bytes) -> None:
        client[1].write(data)
        assert await asyncio.wait_for(client[0].readexactly(len(data)), PATIENCE) == data

    first, second = await rig.connect(), await rig.connect()
    await say(first, HELLO)
    await say(second, HELLO)
    await say(first, b"still here")
    third = await rig.connect()
    await say(third, HELLO)
    assert await closed(second[0])
    await say(first, b"still here")
    assert rig.counts == {("visitors", "admitted"): 3, ("visitors", "evicted"): 1}


async def test_a_flood_pushes_out_itself_alone(rig: Rig, loopback_ip: Callable[[], str]) -> None:
    """Silent visitors, and such as said a ClientHello; those who were there first come from elsewhere."""
    rig.gate.waiting.adjust(4, 4)
    rig.gate.inside.adjust(4, 4)
    silent, inside = await rig.connect(loopback_ip()), await rig.connect(loopback_ip())
    inside[1].write(HELLO)
    assert await asyncio.wait_for(inside[0].readexactly(len(HELLO)), PATIENCE) == HELLO
    flood = loopback_ip()
    for _ in range(10):
        await rig.connect(flood)
        reader, writer = await rig.connect(flood)
        writer.write(HELLO)
        assert await asyncio.wait_for(reader.readexactly(len(HELLO)), PATIENCE) == HELLO
    assert rig.counts["visitors", "evicted"] > 10
    for reader, writer in (silent, inside):
        writer.write(HELLO)
        assert await asyncio.wait_for(reader.readexactly(len(HELLO)), PATIENCE) == HELLO


async def test_nothing_is_left_of_those_who_went(rig: Rig) -> None:
    for index in range(50):
        _, writer = await rig.connect()
        writer.write(HELLO[: index % len(HELLO)])
        writer.close()
        if index % 5 == 0:
            sock = socket.create_connection((rig.ip, 20008))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            sock.sendall(HELLO)
            sock.close()  # a reset

    async def empty() -> bool:
        return not rig.gate.waiting and not rig.gate.inside

    await until(empty, "the gate forgets them")


async def test_without_a_server_behind_visitors_are_sent_away(rig: Rig) -> None:
    rig.backend.unlink()
    reader, writer = await rig.connect()
    writer.write(HELLO)
    assert await closed(reader)


async def test_a_taken_port_and_a_strange_address_are_told_apart(rig: Rig) -> None:
    other = Gate(rig.backend, Counter(), rig.desk)
    with pytest.raises(OSError, match=f"port 20008 is taken at {rig.ip}"):
        await other.open(rig.ip, 20008)
    with pytest.raises(OSError, match="check listenAddress"):
        await other.open("192.0.2.1", 20008)


async def test_an_inquiry_that_is_rubbish_is_told_off(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rubbish = b"\x16\x03\x01\x00" + bytes([len(DIAGNOSIS)]) + DIAGNOSIS
    for _ in range(3):
        reader, writer = await rig.connect()
        writer.write(rubbish)
        assert await asyncio.wait_for(reader.read(), PATIENCE), "an alert"
    assert [record.message for record in caplog.records] == ["visitor refused"], "once"
    assert not rig.gate.inside and not rig.counts


async def test_an_inquiry_that_says_no_more_is_ended(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "HELLO_TIMEOUT", 0.3)
    asking = TlsEndpoint(identity(rig.backend.parent, "s"), server=False, alpn=(DIAGNOSIS,))
    reader, writer = await rig.connect()
    writer.write(asking.data_to_send())
    assert await asyncio.wait_for(reader.read(), PATIENCE), "its part of the handshake"
    assert not rig.gate.waiting
