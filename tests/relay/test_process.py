"""A relay process and two clients, over real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import socket
import struct
import time
import urllib.request
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from protos import relay_pb2 as pb
from services.runtime import config as configuration
from services.runtime.identity import Identity, Rejection
from services.runtime.tls import TlsError

from .. import loopback
from .harness import PATIENCE, Client, RelayProcess, Stream, circuit, identity, leg, relay_process, until

pytestmark = pytest.mark.slow  # real processes: several a test

MEGABYTE = 1 << 20


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[RelayProcess]:
    async with relay_process(tmp_path) as process:
        yield process


async def pair(relay: RelayProcess) -> tuple[Client, Client]:
    """Nodes a (caller) and b (holds a reservation)."""
    a = await Client.greet(relay.ip, identity(relay.folder, "a"))
    b = await Client.greet(relay.ip, identity(relay.folder, "b"))
    await b.reserve()
    return a, b


def close(*streams: Stream) -> None:
    for _, writer in streams:
        writer.transport.abort()


async def test_reservation_has_a_voucher_that_others_can_verify(relay: RelayProcess) -> None:
    me = identity(relay.folder, "b")
    b = await Client.dial(relay.ip, me)
    await b.ask(hello=pb.Hello(version=1, cluster="test", node_name="b", expected_relay="r1"))
    reserved = await b.reserve()
    assert reserved.ttl.seconds == 3600
    voucher = reserved.voucher
    assert (voucher.relay, voucher.peer) == ("r1", "b")
    certificate = b.tls.endpoint.peer_certificate()
    assert certificate is not None
    signed = f"causeway-voucher-v1\0r1\0b\0{voucher.expires_at.seconds}".encode()
    assert me.verify(certificate, signed, voucher.signature) == "r1"
    with pytest.raises(Rejection):
        me.verify(certificate, signed.replace(b"b", b"c"), voucher.signature)
    status = await relay.status()
    assert [r.peer for r in status.reservations] == ["b"]
    assert status.reservations[0].observed.startswith("127.0.0.1:")
    b.close()


async def test_a_hundred_megabytes_both_ways_with_half_close(relay: RelayProcess) -> None:
    a, b = await pair(relay)
    one, other = await circuit(a, b, "b")
    total = 100 * MEGABYTE

    async def send(stream: Stream, seed: bytes) -> str:
        digest = hashlib.sha256()
        block = hashlib.shake_128(seed).digest(MEGABYTE)
        for n in range(total // MEGABYTE):
            data = n.to_bytes(4) + block[4:]
            digest.update(data)
            stream[1].write(data)
            await stream[1].drain()
        stream[1].write_eof()
        return digest.hexdigest()

    async def receive(stream: Stream) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        while data := await stream[0].read(MEGABYTE):
            digest.update(data)
            size += len(data)
        return digest.hexdigest(), size

    # One way to its end first: the other way must still work afterwards.
    sent, got = await asyncio.gather(send(one, b"forth"), receive(other))
    assert got == (sent, total)
    status = await relay.status()
    assert (status.circuits[0].bytes_from_caller, status.circuits[0].bytes_from_callee) == (total, 0)
    sent, got = await asyncio.gather(send(other, b"back"), receive(one))
    assert got == (sent, total)

    status = await relay.until(lambda now: not now.circuits, "the circuit ends")
    assert (status.bytes_total, status.circuits_total) == (2 * total, 1)
    close(one, other)
    a.close()
    b.close()


async def test_reset_of_one_leg_resets_the_other(relay: RelayProcess) -> None:
    """FAILURES 7: the relay's second leg dies."""
    a, b = await pair(relay)
    one, other = await circuit(a, b, "b")
    one[1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one[1].transport.abort()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ConnectionResetError):
            await other[0].read(1)
    close(other)
    a.close()
    b.close()


async def test_circuits_outlive_their_control_connections_but_the_reservation_does_not(relay: RelayProcess) -> None:
    """FAILURES 13: a control channel that breaks leaves circuits alone."""
    a, b = await pair(relay)
    one, other = await circuit(a, b, "b")
    a.close()
    b.close()

    await relay.until(lambda now: not now.reservations, "the reservation goes")
    one[1].write(b"still there?")
    async with asyncio.timeout(PATIENCE):
        assert await other[0].readexactly(12) == b"still there?"
    c = await Client.greet(relay.ip, identity(relay.folder, "c"))
    refused = (await c.ask(connect=pb.Connect(peer="b"))).refused
    assert refused.reason == pb.REFUSED_REASON_NO_RESERVATION
    close(one, other)
    c.close()


async def test_heartbeat_is_answered_with_the_load(relay: RelayProcess) -> None:
    a = await Client.greet(relay.ip, identity(relay.folder, "a"))
    answer = await a.ask(heartbeat=pb.Heartbeat())
    assert answer.WhichOneof("body") == "heartbeat"
    assert 0 <= answer.heartbeat.load_permille <= 1000
    a.close()


async def test_bad_calls_are_refused(relay: RelayProcess) -> None:
    a, b = await pair(relay)
    for peer, reason in (
        ("a", pb.REFUSED_REASON_BAD_REQUEST),
        ("", pb.REFUSED_REASON_BAD_REQUEST),
        ("nobody", pb.REFUSED_REASON_NO_RESERVATION),
    ):
        refused = (await a.ask(connect=pb.Connect(peer=peer))).refused
        assert refused.reason == reason, refused
    assert (await a.ask(welcome=pb.Welcome())).refused.reason == pb.REFUSED_REASON_BAD_REQUEST
    a.close()
    b.close()


async def test_newer_holder_of_a_name_is_called_and_the_older_takes_over_again(relay: RelayProcess) -> None:
    """FAILURES 12: the same key returns after a kill, while its former self still is connected."""
    a, old = await pair(relay)
    new = await Client.greet(relay.ip, identity(relay.folder, "b"))
    await new.reserve()
    await old.reserve()  # a refresh does not steal the name back
    await a.ask(connect=pb.Connect(peer="b"))
    assert (await new.hear()).incoming.peer == "a"
    new.close()

    await relay.until(lambda now: now.reservations[0].observed == old.address, "the older holder takes over")
    await a.ask(connect=pb.Connect(peer="b"))
    assert (await old.hear()).incoming.peer == "a"
    a.close()
    old.close()


async def test_a_token_works_once_and_only_the_right_one(relay: RelayProcess) -> None:
    a, b = await pair(relay)
    token = (await a.ask(connect=pb.Connect(peer="b"))).circuit.token
    incoming = (await b.hear()).incoming
    first = await leg(relay.ip, token)
    second = await leg(relay.ip, token)
    wrong = await leg(relay.ip, bytes(32))
    async with asyncio.timeout(PATIENCE):
        for stream in (second, wrong):
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await stream[0].readexactly(1)
        other = await leg(relay.ip, incoming.token)
        assert await first[0].readexactly(1) == b"\x01"
    close(first, second, wrong, other)
    a.close()
    b.close()


async def test_limits_refuse_with_alternatives(tmp_path: Path) -> None:
    limits = "limits: {maxReservations: 2, maxCircuits: 2, maxCircuitsPerPeer: 1}"
    async with relay_process(tmp_path, relay=limits) as relay:
        a, b = await pair(relay)
        c = await Client.greet(relay.ip, identity(relay.folder, "c"))
        await c.reserve()
        d = await Client.greet(relay.ip, identity(relay.folder, "d"))
        refused = (await d.ask(reserve=pb.Reserve())).refused
        assert (refused.reason, list(refused.alternatives)) == (pb.REFUSED_REASON_LIMIT, ["r9"])
        assert refused.retry_after.seconds >= 5
        assert (await a.ask(connect=pb.Connect(peer="b"))).WhichOneof("body") == "circuit"
        # a and b have one circuit each; that is all they may have.
        for client, peer in ((a, "c"), (d, "b")):
            refused = (await client.ask(connect=pb.Connect(peer=peer))).refused
            assert refused.reason == pb.REFUSED_REASON_LIMIT, refused
        assert (await relay.status()).refused_total == 3
        for client in (a, b, c, d):
            client.close()


async def test_drain_by_signal_tells_everybody_and_waits_for_circuits(relay: RelayProcess) -> None:
    a, b = await pair(relay)
    one, other = await circuit(a, b, "b")
    relay.signal(signal.SIGTERM)
    for client in (a, b):
        notice = (await client.hear()).drain
        assert 0 < notice.deadline.seconds <= 5
    assert (await a.ask(connect=pb.Connect(peer="b"))).refused.reason == pb.REFUSED_REASON_DRAINING
    assert (await b.ask(reserve=pb.Reserve())).refused.reason == pb.REFUSED_REASON_DRAINING
    one[1].write(b"last words")
    one[1].write_eof()
    async with asyncio.timeout(PATIENCE):
        assert await other[0].read() == b"last words"
    assert relay.exit_code is None
    other[1].write_eof()
    assert await relay.wait() == 0
    close(one, other)
    a.close()
    b.close()


async def test_drain_by_call_leaves_what_does_not_move(relay: RelayProcess) -> None:
    a, b = await pair(relay)
    one, other = await circuit(a, b, "b")
    async with relay.api() as api:
        request = pb.DrainRequest()
        request.deadline.FromMilliseconds(300)
        assert (await api.Drain(request, timeout=PATIENCE)).circuits_left == 1
    assert (await relay.status()).draining
    relay.signal(signal.SIGTERM)
    assert await relay.wait() == 0
    close(one, other)
    a.close()
    b.close()


async def test_wrong_psk_and_wrong_cluster_are_named_on_both_sides(relay: RelayProcess) -> None:

    def logged(relay: RelayProcess, text: str, times: int) -> bool:
        return relay.output().count(text) == times

    for reason, stranger in (
        ("wrong-psk", identity(relay.folder, "a", psk="another secret, quite long enough")),
        ("wrong-cluster", identity(relay.folder, "a", cluster="other")),
    ):
        client = await Client.dial(relay.ip, stranger)
        with pytest.raises(Rejection) as raised:
            client.tls.judge()
        assert raised.value.reason == reason
        await client.say(reject=pb.Reject(reason=raised.value.reason, message="said by the client"))
        said = (await client.hear()).reject
        assert said.reason == reason
        assert said.message
        assert await client.ended()
        await until(partial(logged, relay, f"remote={client.address} reason={reason}", 2), "both rejections are logged")
        client.close()


async def test_an_expired_certificate_is_named_on_both_sides(relay: RelayProcess) -> None:
    file = relay.folder / "old.yaml"
    file.write_text(
        f"nodeName: old\ncluster: test\nstateDir: {relay.folder}/state-old\nrunDir: {relay.run_dir}\n"
        f"modules: {{edgeTunnel: {{psk: {{path: {relay.folder}/psk, certificateLifetimeSeconds: 3}}}}}}\n"
    )
    # Made an hour ago, so that the allowance for wrong clocks is over, too.
    old = Identity.load(configuration.load(file), lambda: time.time() - 3600)
    client = await Client.dial(relay.ip, old)
    said = (await client.hear()).reject
    assert said.reason == "certificate-expired" and "the certificate of old expired at" in said.message
    assert await client.ended()
    client.close()

    def logged() -> bool:
        return f"remote={client.address} reason=certificate-expired" in relay.output()

    await until(logged, "the relay says whom it refused, and why")


async def test_greeting_must_fit_certificate_version_cluster_and_relay(relay: RelayProcess) -> None:
    me = identity(relay.folder, "a")
    for reason, hello in (
        ("bad-version", pb.Hello(version=2, cluster="test", node_name="a")),
        ("wrong-cluster", pb.Hello(version=1, cluster="prod", node_name="a")),
        ("name-mismatch", pb.Hello(version=1, cluster="test", node_name="b")),
        ("name-mismatch", pb.Hello(version=1, cluster="test", node_name="a", expected_relay="r2")),
    ):
        client = await Client.dial(relay.ip, me)
        answer = await client.ask(hello=hello)
        assert answer.reject.reason == reason, answer
        assert await client.ended()
        client.close()


@pytest.mark.parametrize(
    ("relay_section", "named", "active", "condition"),
    [
        ("mode: auto", True, True, "Configured"),
        ("mode: auto", False, False, "Unproven"),
        ("mode: on", False, True, "Forced"),
        ("mode: off", True, False, "Disabled"),
    ],
)
async def test_role(tmp_path: Path, relay_section: str, named: bool, active: bool, condition: str) -> None:
    async with relay_process(tmp_path, relay=relay_section, named=named) as relay:
        status = await relay.status()
        assert status.active is active
        assert status.reason
        found = [(c.type, c.status, c.reason) for c in status.conditions]
        assert found == [("RelayCapable", active, condition), ("Reachable", False, "NotProbed")]
        if relay_section != "mode: off":
            # Who may become a relay is dialled back there, and serves nobody.
            client = Client.dial(relay.ip, identity(relay.folder, "a"))
            if active:
                (await client).close()
            else:
                with pytest.raises((OSError, EOFError, TlsError)):
                    await client
        else:
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(relay.ip, 20007)
        relay.signal(signal.SIGTERM)
        assert await relay.wait() == 0


async def test_port_taken_is_one_clear_line(relay: RelayProcess, tmp_path: Path) -> None:
    second = RelayProcess(tmp_path, name="r2")
    second.config.write_text(second.config.read_text().replace(second.ip, relay.ip))
    try:
        second.spawn()
        assert await second.wait() == 1
        assert f"relay port 20007 on {relay.ip}" in second.output()
    finally:
        second.end()


async def test_metrics_are_read_while_circuits_run(tmp_path: Path) -> None:
    free = loopback.port()
    async with relay_process(tmp_path, extra=f"metrics: {{basePort: {free - 2}}}") as relay:
        a, b = await pair(relay)
        one, other = await circuit(a, b, "b")
        one[1].write(bytes(12345))
        await other[0].readexactly(12345)
        assert (await a.ask(connect=pb.Connect(peer="x"))).WhichOneof("body") == "refused"

        def scrape() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{free}/metrics", timeout=PATIENCE) as response:
                return str(response.read().decode())

        lines = (await asyncio.to_thread(scrape)).splitlines()
        for line in (
            "causeway_relay_active 1.0",
            "causeway_relay_reservations 1.0",
            "causeway_relay_circuits 1.0",
            "causeway_relay_bytes_total 12345.0",
            'causeway_relay_refused_total{reason="no-reservation"} 1.0',
            'causeway_relay_condition{reason="Configured",type="RelayCapable"} 1.0',
            'causeway_relay_condition{reason="NotProbed",type="Reachable"} 0.0',
        ):
            assert line in lines, f"{line} is not in the metrics"
        close(one, other)
        a.close()
        b.close()


async def test_limits_change_under_an_open_circuit(relay: RelayProcess) -> None:
    a, b = await pair(relay)
    (reader, writer), (far_reader, far_writer) = await circuit(a, b, "b")
    with socket.create_connection((relay.ip, 20007)) as crowd, socket.create_connection((relay.ip, 20007)) as last:
        await relay.until(lambda status: status.warnings == [], "it has nothing to say")
        text = relay.config.read_text()
        limits = "limits: {maxHalfOpen: 4, reservationTtlSeconds: 120}"
        relay.config.write_text(text.replace("edgeRelay: {}", f"edgeRelay: {{{limits}}}"))
        status = await relay.until(lambda it: it.limits.max_half_open == 4, "the new limits are in force")
        assert not status.warnings
        # One from each source now: the older is closed, the younger stays.
        crowd.settimeout(PATIENCE)
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(crowd.recv, 1)
        # What was granted lasts as long as it was granted for, what is granted now is shorter.
        assert status.reservations[0].expires_in.seconds > 3000
        assert (await b.reserve()).ttl.seconds == 120
        assert (await relay.status()).reservations[0].expires_in.seconds <= 120
        writer.write(b"still")
        async with asyncio.timeout(PATIENCE):
            assert await far_reader.readexactly(5) == b"still"
        last.close()
    close((reader, writer), (far_reader, far_writer))
    a.close()
    b.close()
