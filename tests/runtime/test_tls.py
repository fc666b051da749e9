"""TLS in memory, and messages over it on real sockets; then garbage in every form."""

import asyncio
import errno
import gc
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from services.runtime.identity import Identity, Rejection
from services.runtime.tls import MESSAGE_MAX, FramedTls, TlsEndpoint, TlsError
from tests.runtime.nodes import OTHER_PSK, Clock, identity


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity]:
    folder = tmp_path_factory.mktemp("nodes")
    return identity(folder, "edge-a"), identity(folder, "edge-b")


Nodes = tuple[Identity, Identity]


def shake(client: TlsEndpoint, server: TlsEndpoint, *, step: int = 1 << 20) -> None:
    """Carries bytes both ways until both are silent, `step` at a time."""
    while True:
        outward, homeward = client.data_to_send(), server.data_to_send()
        if not outward and not homeward:
            return
        for start in range(0, len(outward), step):
            server.receive(outward[start : start + step])
        for start in range(0, len(homeward), step):
            client.receive(homeward[start : start + step])


def connected(nodes: Nodes, *, step: int = 1 << 20) -> tuple[TlsEndpoint, TlsEndpoint]:
    client, server = TlsEndpoint(nodes[0], server=False), TlsEndpoint(nodes[1], server=True)
    shake(client, server, step=step)
    return client, server


# TlsEndpoint


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_handshake_both_judge_both_export(nodes: Nodes, step: int) -> None:
    client, server = connected(nodes, step=step)
    assert client.handshake_done
    assert server.handshake_done
    assert client.judge("edge-b") == "edge-b"
    assert server.judge() == "edge-a"
    assert client.export(b"EXPORTER-causeway", 32) == server.export(b"EXPORTER-causeway", 32)
    assert client.export(b"EXPORTER-causeway", 32) != client.export(b"EXPORTER-other", 32)
    assert client.export(b"EXPORTER-causeway", 32) != connected(nodes)[0].export(b"EXPORTER-causeway", 32)


def test_data_both_ways(nodes: Nodes) -> None:
    client, server = connected(nodes)
    big = random.Random(1).randbytes(3 << 20)
    client.write(big)
    server.write(b"answer")
    shake(client, server)
    assert server.read() == big
    assert client.read() == b"answer"
    assert (server.read(), client.read()) == (b"", b"")


def test_close_is_seen(nodes: Nodes) -> None:
    client, server = connected(nodes)
    client.write(b"last")
    client.close()
    shake(client, server)
    assert server.closed
    assert server.read() == b"last"
    with pytest.raises(TlsError):
        client.write(b"more")


def test_nothing_works_before_the_handshake(nodes: Nodes) -> None:
    client = TlsEndpoint(nodes[0], server=False)
    for use in (lambda: client.write(b"x"), client.judge, lambda: client.export(b"EXPORTER-x", 32)):
        with pytest.raises(TlsError, match="not done"):
            use()
    client.close()
    assert client.peer_certificate() is None


def test_strangers_shake_hands_and_are_told_apart_by_both(short_path: Path, nodes: Nodes) -> None:
    # The handshake itself succeeds, so that each side can say over it why it will not go on.
    old = Clock()
    old.now -= 10 * 86400
    for stranger, reason in (
        (identity(short_path, "edge-c", psk=OTHER_PSK), "wrong-psk"),
        (identity(short_path, "edge-d", cluster="blue"), "wrong-cluster"),
    ):
        for pair in ((nodes[0], stranger), (stranger, nodes[0])):
            client, server = connected(pair)
            for end in (client, server):
                with pytest.raises(Rejection) as caught:
                    end.judge()
                assert caught.value.reason == reason
    client, server = connected((identity(short_path, "edge-e", old), nodes[1]))
    with pytest.raises(Rejection) as caught:
        server.judge()
    assert caught.value.reason == "certificate-expired"


def standard_client(**settings: Any) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A client of another make, which trusts everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for key, value in settings.items():
        setattr(context, key, value)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    return context.wrap_bio(incoming, outgoing), incoming, outgoing


def run_against(server: TlsEndpoint, client: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
    for _ in range(5):
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            pass
        server.receive(outgoing.read())
        incoming.write(server.data_to_send())


def test_a_client_without_certificate_is_refused_and_told(nodes: Nodes) -> None:
    server = TlsEndpoint(nodes[1], server=True)
    with pytest.raises(TlsError, match="no certificate"):
        run_against(server, *standard_client())
    assert server.data_to_send(), "an alert"
    assert not server.handshake_done


def test_tls_1_2_is_refused(nodes: Nodes) -> None:
    server = TlsEndpoint(nodes[1], server=True)
    with pytest.raises(TlsError, match=r"does not speak TLS 1\.3"):
        run_against(server, *standard_client(maximum_version=ssl.TLSVersion.TLSv1_2))


def test_a_stolen_certificate_is_of_no_use(nodes: Nodes, short_path: Path) -> None:
    thief = identity(short_path, "thief")
    thief.credentials = replace(thief.credentials, certificate=nodes[0].credentials.certificate)
    with pytest.raises(SSL.Error, match="key values mismatch"):
        TlsEndpoint(thief, server=False)


def test_renewed_credentials_are_used_for_new_connections(short_path: Path) -> None:
    clock = Clock()
    a, b = identity(short_path, "edge-a", clock), identity(short_path, "edge-b", clock)
    first = connected((a, b))[1].peer_certificate()
    clock.now += 60_000
    assert a.refresh()
    _, server = connected((a, b))
    assert server.judge() == "edge-a"
    assert server.peer_certificate() != first


@given(data=st.binary(max_size=600), server=st.booleans(), step=st.integers(1, 50))
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused_or_awaited(nodes: Nodes, data: bytes, server: bool, step: int) -> None:
    endpoint = TlsEndpoint(nodes[0], server=server)
    try:
        for start in range(0, len(data), step):
            endpoint.receive(data[start : start + step])
    except TlsError as error:
        assert str(error)
        assert "\n" not in str(error)
    assert not endpoint.handshake_done
    endpoint.data_to_send()


@pytest.mark.slow
@given(position=st.integers(0, 10_000), flip=st.integers(1, 255), direction=st.booleans())
@settings(max_examples=300, deadline=None)
def test_damage_in_the_handshake_is_never_accepted(nodes: Nodes, position: int, flip: int, direction: bool) -> None:
    client, server = TlsEndpoint(nodes[0], server=False), TlsEndpoint(nodes[1], server=True)
    outward, left = client.data_to_send(), position
    try:
        for _ in range(4):
            for target, data in ((server, outward), (client, b"")):
                data = data or server.data_to_send()
                damaged = (target is server) == direction and 0 <= left < len(data)
                if damaged:
                    data = data[:left] + bytes([data[left] ^ flip]) + data[left + 1 :]
                if (target is server) == direction:
                    left -= len(data)
                target.receive(data)
            outward = client.data_to_send()
        for end in (client, server):
            if end.handshake_done:
                end.judge()
    except (TlsError, Rejection):
        return
    # Some bits say nothing (the record's legacy version); then both ends agree on everything that matters.
    if client.handshake_done and server.handshake_done:
        assert client.export(b"EXPORTER-x", 32) == server.export(b"EXPORTER-x", 32)


# FramedTls


@asynccontextmanager
async def channels(nodes: Nodes) -> AsyncIterator[tuple[FramedTls, FramedTls]]:
    left, right = socket.socketpair()
    client, server = await asyncio.gather(
        FramedTls.start(left, nodes[0], server=False), FramedTls.start(right, nodes[1], server=True)
    )
    try:
        yield client, server
    finally:
        client.abort()
        server.abort()


async def soon(awaitable: Coroutine[Any, Any, Any]) -> Any:
    return await asyncio.wait_for(awaitable, 30)


async def test_messages_of_every_size(nodes: Nodes) -> None:
    async with channels(nodes) as (client, server):
        assert client.judge("edge-b") == "edge-b"
        assert server.judge("edge-a") == "edge-a"
        for size in (0, 1, 3, 4, 5, 16379, 16380, 16384, MESSAGE_MAX - 1, MESSAGE_MAX):
            message = random.Random(size).randbytes(size)
            sending = asyncio.create_task(client.send(message))
            assert await soon(server.receive()) == message
            await sending
            await server.send(message[:100])
            assert await soon(client.receive()) == message[:100]
        with pytest.raises(ValueError, match="at most"):
            await client.send(bytes(MESSAGE_MAX + 1))


async def test_many_senders_never_mix(nodes: Nodes) -> None:
    async with channels(nodes) as (client, server):
        messages = [bytes([n]) * (n * 997 % 40_000) for n in range(100)]
        sending = asyncio.gather(*(client.send(message) for message in messages))
        assert [await soon(server.receive()) for _ in messages] == messages
        await sending


async def test_head_is_what_was_read_before(nodes: Nodes) -> None:
    left, right = socket.socketpair()
    right.setblocking(False)
    starting = asyncio.create_task(FramedTls.start(left, nodes[0], server=False))
    head = await asyncio.get_running_loop().sock_recv(right, 3)
    server = await soon(FramedTls.start(right, nodes[1], server=True, head=head))
    client = await starting
    assert server.judge() == "edge-a"
    closing = asyncio.create_task(client.close())
    with pytest.raises(EOFError):
        await soon(server.receive())
    await server.close()
    await closing


async def test_a_cancelled_receive_loses_nothing(nodes: Nodes) -> None:
    async with channels(nodes) as (client, server):
        for part in (b"x" * 60_000, b"y"):
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(server.receive(), 0.01)
            await client.send(part)
            assert await soon(server.receive()) == part


async def test_close_ends_the_other_side_with_everything_said_before(nodes: Nodes) -> None:
    async with channels(nodes) as (client, server):
        # The server has said much that the client never read: a plain close would reset the connection and
        # could destroy the client's last words.
        for _ in range(3):
            await server.send(b"unread" * 100)
        await client.send(b"last words")
        closing = asyncio.create_task(client.close())
        assert await soon(server.receive()) == b"last words"
        with pytest.raises(EOFError):
            await soon(server.receive())
        await server.close()
        await soon(closing)  # type: ignore[arg-type]
        for use in (client.receive(), client.send(b"x")):
            with pytest.raises((TlsError, EOFError)):
                await soon(use)


async def test_abort_wakes_who_waits(nodes: Nodes) -> None:
    async with channels(nodes) as (client, server):
        waiting = asyncio.create_task(server.receive())
        await asyncio.sleep(0.01)
        server.abort()
        with pytest.raises((EOFError, TlsError, OSError)):
            await soon(waiting)  # type: ignore[arg-type]
        server.abort()
        with pytest.raises((EOFError, OSError)):
            await soon(client.receive())


@pytest.mark.parametrize("reset", [True, False])
async def test_who_aborts_with_a_reset_may_connect_between_the_same_ports_at_once(nodes: Nodes, reset: bool) -> None:
    """Where the other side answers nothing, the kernel holds on to a connection that was closed in order."""

    def connect(source: tuple[str, int]) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            sock.bind(source)
            sock.connect(server.getsockname())
            return sock
        except OSError:
            sock.close()
            raise

    def connects_again() -> bool:
        sock = connect(("127.0.0.1", 0))
        source = sock.getsockname()
        with server.accept()[0]:
            FramedTls(sock, nodes[0], server=False).abort(reset=reset)
            try:
                connect(source).close()
            except OSError as error:
                assert error.errno == errno.EADDRNOTAVAIL
                return False
            return True

    with socket.create_server(("127.0.0.1", 0)) as server:
        if reset:
            assert connects_again()
        else:
            # On loopback the kernel lets ports be used again once its clock has passed a full second (tcp_tw_reuse).
            assert not all(connects_again() for _ in range(5))


async def test_abort_wakes_a_sender_whose_peer_does_not_read(nodes: Nodes) -> None:
    async with channels(nodes) as (client, _):

        async def flood() -> None:
            while True:
                await client.send(bytes(MESSAGE_MAX))

        flooding = asyncio.create_task(flood())
        await asyncio.sleep(0.05)
        assert not flooding.done(), "held back: memory is bounded"
        client.abort()
        with pytest.raises((TlsError, OSError)):
            await soon(flooding)  # type: ignore[arg-type]


async def test_a_cancelled_send_breaks_the_channel(nodes: Nodes) -> None:
    async with channels(nodes) as (client, _):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                while True:
                    await client.send(bytes(MESSAGE_MAX))
        with pytest.raises(TlsError, match="half-way"):
            await client.send(b"x")


async def test_detach_hands_over_exactly_what_comes_after(nodes: Nodes) -> None:
    async with channels(nodes) as (client, server):
        loop = asyncio.get_running_loop()
        await client.send(b"ready")
        assert await soon(server.receive()) == b"ready"
        await server.send(b"switch")
        await loop.sock_sendall(server.socket, b"raw bytes")
        assert await soon(client.receive()) == b"switch"
        rest = client.detach()
        while len(rest) < 9:
            rest += await soon(loop.sock_recv(client.socket, 100))
        assert rest == b"raw bytes"
        assert server.detach() == b""
        await loop.sock_sendall(client.socket, b"back")
        assert await soon(loop.sock_recv(server.socket, 100)) == b"back"
        with pytest.raises(TlsError, match="has ended"):
            await client.send(b"x")


async def test_detach_refuses_when_more_was_sent_than_agreed(nodes: Nodes) -> None:
    async with channels(nodes) as (client, server):
        server.endpoint.write(b"\0\0\0\1a\0\0\0\1b")
        await server.send(b"")
        assert await soon(client.receive()) == b"a"
        with pytest.raises(TlsError, match="more than"):
            client.detach()


async def test_a_message_too_long_is_refused(nodes: Nodes) -> None:
    async with channels(nodes) as (client, server):
        client.endpoint.write((MESSAGE_MAX + 1).to_bytes(4))
        await client.send(b"")
        with pytest.raises(TlsError, match="at most 65536"):
            await soon(server.receive())


async def test_a_silent_peer_times_out(nodes: Nodes) -> None:
    left, right = socket.socketpair()
    with pytest.raises(TimeoutError, match="not done within"):
        await FramedTls.start(right, nodes[1], server=True, timeout=0.05)
    assert right.fileno() == -1, "closed"
    left.close()


async def test_a_peer_that_goes_away(nodes: Nodes) -> None:
    left, right = socket.socketpair()
    left.close()
    with pytest.raises((EOFError, OSError)):
        await soon(FramedTls.start(right, nodes[1], server=True))
    assert right.fileno() == -1


async def test_refused_client_is_told_by_an_alert(nodes: Nodes) -> None:
    left, right = socket.socketpair()

    def connect() -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        left.settimeout(30)
        try:
            with context.wrap_socket(left) as wrapped:
                wrapped.recv(1)
        except ssl.SSLError as error:
            return str(error.reason)
        return "nothing"

    told = asyncio.create_task(asyncio.to_thread(connect))
    with pytest.raises(TlsError, match="no certificate"):
        await soon(FramedTls.start(right, nodes[1], server=True))
    assert "CERTIFICATE_REQUIRED" in await told


Damage = Callable[[bytes, random.Random], list[bytes]]


def whole(data: bytes, _: random.Random) -> list[bytes]:
    return [data]


def byte_by_byte(data: bytes, _: random.Random) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def anyhow(data: bytes, rng: random.Random) -> list[bytes]:
    parts = []
    while data:
        size = rng.choice([1, 2, 5, 100, 3000])
        parts.append(data[:size])
        data = data[size:]
    return parts


@pytest.mark.parametrize("split", [whole, byte_by_byte, anyhow])
@pytest.mark.parametrize("seed", range(8))
async def test_garbage_on_the_socket(nodes: Nodes, split: Damage, seed: int) -> None:
    rng = random.Random(seed)
    client = TlsEndpoint(nodes[0], server=False)
    hello = client.data_to_send()
    data = rng.choice(
        [
            rng.randbytes(300),
            b"\x16\x03\x01" + rng.randbytes(400),
            hello + rng.randbytes(300),
            hello[: rng.randrange(len(hello))],
            b"\x17\x03\x03\xff\xff" + rng.randbytes(300),
            b"GET / HTTP/1.1\r\n\r\n",
            hello + hello,
            b"CWL1" + rng.randbytes(32),
        ]
    )
    left, right = socket.socketpair()
    starting = asyncio.create_task(FramedTls.start(right, nodes[1], server=True))
    left.setblocking(False)
    try:
        for part in split(data, rng):
            await asyncio.get_running_loop().sock_sendall(left, part)
            await asyncio.sleep(0)
    except OSError:
        pass  # refused before it was all said
    left.close()
    with pytest.raises((TlsError, EOFError, OSError)):
        await soon(starting)  # type: ignore[arg-type]
    assert right.fileno() == -1


@pytest.mark.parametrize("seed", range(10))
async def test_garbage_in_a_running_channel(nodes: Nodes, seed: int) -> None:
    rng = random.Random(seed)
    async with channels(nodes) as (client, server):
        await client.send(b"good")
        for part in anyhow(rng.randbytes(500), rng):
            await asyncio.get_running_loop().sock_sendall(client.socket, part)
        client.socket.shutdown(socket.SHUT_WR)
        assert await soon(server.receive()) == b"good"
        with pytest.raises((TlsError, EOFError)):
            while True:
                await soon(server.receive())


async def test_silent_peers_leave_nothing_behind(nodes: Nodes) -> None:
    # Not even for the garbage collector, which would let a flood of them pile up.
    gc.collect()
    gc.disable()
    try:
        pairs = [socket.socketpair() for _ in range(20)]
        starting = [
            asyncio.create_task(FramedTls.start(right, nodes[1], server=True, timeout=0.05)) for _, right in pairs
        ]
        assert {type(result) for result in await asyncio.gather(*starting, return_exceptions=True)} == {TimeoutError}
        starting.clear()
        await asyncio.sleep(0)
        assert not [kept for kept in gc.get_objects() if isinstance(kept, FramedTls)]
    finally:
        gc.enable()
    for left, _ in pairs:
        left.close()
