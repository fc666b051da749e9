"""Hostile input on the public port of a real relay: it closes, stays small and serves the honest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protos import relay_pb2 as pb

from .harness import PATIENCE, Client, RelayProcess, circuit, identity, leg, relay_process, until

pytestmark = pytest.mark.slow  # real processes: time limits of seconds

MEGABYTE = 1 << 20


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[RelayProcess]:
    async with relay_process(tmp_path) as process:
        yield process
        assert process.exit_code is None, process.output()
        assert "Traceback" not in process.output(), process.output()


async def closed(reader: asyncio.StreamReader) -> bool:
    """The relay closes, whatever it says before."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            while await reader.read(65536):
                pass
    return True


async def works(relay: RelayProcess) -> None:
    """An honest circuit can be made and carries bytes."""
    a = await Client.greet(relay.ip, identity(relay.folder, "a"))
    b = await Client.greet(relay.ip, identity(relay.folder, "b"))
    await b.reserve()
    one, other = await circuit(a, b, "b")
    one[1].write(b"hello")
    async with asyncio.timeout(PATIENCE):
        assert await other[0].readexactly(5) == b"hello"
    for stream in (one, other):
        stream[1].transport.abort()
    a.close()
    b.close()


def client_hello(relay: RelayProcess) -> bytes:
    """A true ClientHello."""
    from services.runtime.tls import TlsEndpoint

    return TlsEndpoint(identity(relay.folder, "a"), server=False).data_to_send()


async def test_junk_of_all_kinds_is_closed(relay: RelayProcess) -> None:
    rng = random.Random(11)
    hello = client_hello(relay)
    inputs = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\0",
        b"CWL2" + bytes(32),
        b"CWL1" + bytes(32),
        b"CWL1" + rng.randbytes(100_000),
        b"\x16\x03\x01\xff\xff" + bytes(70_000),
        b"\x16" + rng.randbytes(5000),
        hello[:40] + rng.randbytes(1000),
        hello + hello,
        hello + rng.randbytes(100_000),
    ]
    inputs += [rng.randbytes(rng.randint(1, 300)) for _ in range(60)]
    for _ in range(60):  # a ClientHello with single bytes changed
        changed = bytearray(hello)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        inputs.append(bytes(changed))
    for data in inputs:
        reader, writer = await asyncio.open_connection(relay.ip, 20007)
        with contextlib.suppress(OSError):  # it may be closed already
            writer.write(data)
            await writer.drain()
            writer.write_eof()
        assert await closed(reader)
        writer.transport.abort()
    await relay.until(lambda now: True, "it answers")
    await works(relay)


async def test_what_stops_half_way_is_closed_in_time(relay: RelayProcess) -> None:
    hello = client_hello(relay)
    parts = [b"", b"C", b"CWL1" + bytes(31), hello[:1], hello[:5], hello[:100], hello]
    streams = []
    for part in parts:
        reader, writer = await asyncio.open_connection(relay.ip, 20007)
        writer.write(part)
        streams.append((reader, writer))
    assert all(await asyncio.gather(*(closed(reader) for reader, _ in streams)))
    for _, writer in streams:
        writer.transport.abort()
    await works(relay)


async def test_a_client_that_never_stops_dripping_is_closed(relay: RelayProcess) -> None:
    reader, writer = await asyncio.open_connection(relay.ip, 20007)
    ending = asyncio.ensure_future(closed(reader))
    hello = client_hello(relay)
    for n in range(len(hello)):
        if ending.done():
            break
        with contextlib.suppress(ConnectionError):
            writer.write(hello[n : n + 1])
        await asyncio.sleep(0.1)
    assert ending.done()
    assert await ending
    writer.transport.abort()


async def test_a_leg_that_drips_its_token_gets_through_with_what_follows(relay: RelayProcess) -> None:
    a = await Client.greet(relay.ip, identity(relay.folder, "a"))
    b = await Client.greet(relay.ip, identity(relay.folder, "b"))
    await b.reserve()
    token = (await a.ask(connect=pb.Connect(peer="b"))).circuit.token
    incoming = (await b.hear()).incoming
    reader, writer = await asyncio.open_connection(relay.ip, 20007)
    for byte in b"CWL1" + token:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.005)
    writer.write(b"sent ahead of the answer")
    other = await leg(relay.ip, incoming.token)
    async with asyncio.timeout(PATIENCE):
        assert await reader.readexactly(1) == b"\x01"
        assert await other[0].readexactly(25) == b"\x01sent ahead of the answer"
    for stream in ((reader, writer), other):
        stream[1].transport.abort()
    a.close()
    b.close()


async def test_bad_messages_end_their_connection_only(relay: RelayProcess) -> None:
    rng = random.Random(5)
    me = identity(relay.folder, "a")
    honest = await Client.greet(relay.ip, identity(relay.folder, "h"))
    long_name = "x" * 300
    bad = [
        rng.randbytes(100),
        b"",
        b"\xff" * 65536,
        pb.ControlMessage(id=1).SerializeToString(),
        pb.ControlMessage(connect=pb.Connect(peer=long_name)).SerializeToString(),
        b"\x2a\x05\x0a\xff\xff\xff\xff",
    ]
    for data in bad:
        for greeted in (False, True):
            client = await (Client.greet if greeted else Client.dial)(relay.ip, me)
            await client.tls.send(data)
            assert await client.ended()
            client.close()
    for announced in (65537, 1 << 30, (1 << 32) - 1):
        client = await Client.greet(relay.ip, me)
        client.tls.endpoint.write(announced.to_bytes(4) + b"x")
        await asyncio.get_running_loop().sock_sendall(client.tls.socket, client.tls.endpoint.data_to_send())
        assert await client.ended()
        client.close()
    for _ in range(100):  # random ControlMessages, some of which are well-formed
        client = await Client.greet(relay.ip, me)
        body = bytes([rng.choice((0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42, 0x4A, 0x52, 0x5A, 0x62))])
        inner = rng.randbytes(rng.randint(0, 20))
        await client.tls.send(body + bytes([len(inner)]) + inner)
        client.close()
    answer = await honest.ask(heartbeat=pb.Heartbeat())
    assert answer.WhichOneof("body") == "heartbeat"
    honest.close()
    await works(relay)


async def test_many_messages_at_once_are_all_answered(relay: RelayProcess) -> None:
    a = await Client.greet(relay.ip, identity(relay.folder, "a"))
    for _ in range(250):
        await a.say(heartbeat=pb.Heartbeat())
    for n in range(250):
        answer = await a.hear()
        assert (answer.WhichOneof("body"), answer.id) == ("heartbeat", n + 2)
    a.close()


async def test_flood_of_half_open_connections(tmp_path: Path) -> None:
    """Thousands of connections that say nothing, or half of something, from many addresses: memory stays, an
    honest circuit flows on, and new honest clients get in."""
    async with relay_process(tmp_path, relay="limits: {maxHalfOpen: 128}") as relay:
        a = await Client.greet(relay.ip, identity(relay.folder, "a"))
        b = await Client.greet(relay.ip, identity(relay.folder, "b"))
        await b.reserve()
        one, other = await circuit(a, b, "b")
        hello = client_hello(relay)
        heads = [b"", b"C", b"CWL1" + bytes(20), hello[:60], hello]
        rng = random.Random(2)
        held: list[socket.socket] = []
        opened = 0
        flooding = True

        async def flood() -> None:
            nonlocal opened
            loop = asyncio.get_running_loop()
            while flooding:
                for _ in range(20):
                    sock = socket.socket()
                    sock.setblocking(False)
                    # Sixteen sources with up to 32 each: more than may be half-open in all.
                    sock.bind((f"127.0.9.{rng.randint(1, 16)}", 0))
                    held.append(sock)
                    try:
                        await loop.sock_connect(sock, (relay.ip, 20007))
                        sock.send(rng.choice(heads))
                    except OSError:
                        pass
                    opened += 1
                while len(held) > 3000:
                    held.pop(0).close()
                await asyncio.sleep(0.001)

        before = relay.rss()
        flooder = asyncio.ensure_future(flood())
        try:
            data = os.urandom(MEGABYTE)
            rounds = 0
            while opened < 4000:
                one[1].write(data)
                async with asyncio.timeout(PATIENCE):
                    assert await other[0].readexactly(MEGABYTE) == data
                await a.ask(heartbeat=pb.Heartbeat())  # on a busy machine the flood outlasts the patience with the mute
                rounds += 1
            assert rounds
            status = await relay.status()
            assert len(status.circuits) == 1
            c = await newcomer(relay, "c")
            assert (await c.ask(heartbeat=pb.Heartbeat())).WhichOneof("body") == "heartbeat"
            c.close()
            # 128 handshakes hold 0.1 MiB each.
            assert relay.rss() - before < 32 * MEGABYTE
        finally:
            flooding = False
            await flooder
            for sock in held:
                sock.close()
        assert (await a.ask(heartbeat=pb.Heartbeat())).WhichOneof("body") == "heartbeat"
        for stream in (one, other):
            stream[1].transport.abort()
        a.close()
        b.close()
        await until(lambda: relay.exit_code is None, "it lives")


async def newcomer(relay: RelayProcess, name: str) -> Client:
    """An honest client under a flood. On a busy machine its handshake may lose a race or two; a real one dials
    again as well."""
    me = identity(relay.folder, name)
    for _ in range(20):
        with contextlib.suppress(OSError, EOFError):
            return await Client.greet(relay.ip, me, source="127.0.8.1")
    raise AssertionError("no honest client gets in")
