"""The relay in this process, with limits so short that time can be waited for; and its reports to discovery."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from protos import discovery_pb2, discovery_pb2_grpc
from protos import relay_pb2 as pb
from services.relay import listener
from services.relay.control import MAX_QUEUE
from services.relay.core.limits import Limits
from services.relay.core.messages import Heartbeat
from services.relay.core.role import Role
from services.relay.relay import Relay
from tests import loopback

from .harness import PATIENCE, Client, RelayProcess, circuit, identity, leg, limits, until

pytestmark = pytest.mark.slow  # real processes: beside its discovery


@dataclass
class Here:
    """A relay that serves in this process."""

    relay: Relay
    ip: str
    folder: Path
    changes: list[None] = field(default_factory=list)

    async def client(self, name: str) -> Client:
        return await Client.greet(self.ip, identity(self.folder, name))


@asynccontextmanager
async def serving(folder: Path, limits: Limits) -> AsyncIterator[Here]:
    changes: list[None] = []
    ip = loopback.address()
    relay = Relay(
        identity(folder, "r1"),
        limits,
        Role(True, True, "for the test", True, "Configured"),
        alternatives=(),
        changed=lambda: changes.append(None),
        log=logging.getLogger("causeway.test"),
    )
    relay.open(ip, 20007)
    try:
        yield Here(relay, ip, folder, changes)
    finally:
        await relay.close()


async def test_a_silent_control_connection_is_closed_and_its_reservation_dropped(tmp_path: Path) -> None:
    async with serving(tmp_path, limits(heartbeat_timeout=0.5)) as here:
        silent, alive = await here.client("a"), await here.client("b")
        await silent.reserve()
        await alive.reserve()

        async def beat() -> None:
            while True:
                await alive.ask(heartbeat=pb.Heartbeat())
                await asyncio.sleep(0.05)

        beating = asyncio.ensure_future(beat())
        assert await silent.ended()
        assert [r.peer for r in here.relay.status().reservations] == ["b"]
        assert not beating.done()
        beating.cancel()
        silent.close()
        alive.close()


async def test_reservations_run_out(tmp_path: Path) -> None:
    async with serving(tmp_path, limits(reservation_ttl=0.5)) as here:
        b = await here.client("b")
        await b.reserve()
        assert len(here.relay.status().reservations) == 1
        await until(lambda: not here.relay.status().reservations, "the reservation runs out")
        await b.reserve()
        assert len(here.relay.status().reservations) == 1
        b.close()


async def test_a_leg_whose_other_never_comes_is_closed(tmp_path: Path) -> None:
    async with serving(tmp_path, limits(pairing_timeout=0.5)) as here:
        a, b = await here.client("a"), await here.client("b")
        await b.reserve()
        token = (await a.ask(connect=pb.Connect(peer="b"))).circuit.token
        late = (await b.hear()).incoming.token
        reader, writer = await leg(here.ip, token)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            reader, other = await leg(here.ip, late)
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
        assert here.relay.status().refused["not-paired"] == 1
        for stream in (writer, other):
            stream.transport.abort()
        a.close()
        b.close()


AN_HOUR = limits(pairing_timeout=3600.0)
"""With these no time to pair runs out during a test."""


def forgotten(relay: Relay) -> bool:
    """Whether nothing is left of a circuit that was not completed."""
    circuits = relay._broker.circuits
    return not (len(relay._waiting) or len(circuits) or circuits._by_token or circuits._per_peer)


@pytest.mark.parametrize("ahead", [b"", b"and this before the other leg is there"], ids=["silent", "speaking"])
@pytest.mark.parametrize("gracefully", [True, False], ids=["end", "reset"])
async def test_a_leg_that_hangs_up_while_waiting_ends_the_circuit_and_the_late_one_is_turned_away(
    tmp_path: Path, gracefully: bool, ahead: bytes
) -> None:
    async with serving(tmp_path, AN_HOUR) as here:
        a, b = await here.client("a"), await here.client("b")
        await b.reserve()
        token = (await a.ask(connect=pb.Connect(peer="b"))).circuit.token
        incoming = (await b.hear()).incoming
        _, writer = await leg(here.ip, token)
        await until(lambda: len(here.relay._waiting), "the first leg waits")
        writer.write(ahead)
        if ahead:
            await asyncio.sleep(0.1)
        if gracefully:
            writer.close()
        else:
            writer.transport.abort()
        if not ahead:  # else the end is behind what nobody may read yet
            await until(lambda: forgotten(here.relay), "the circuit is forgotten")
            assert here.relay.status().refused["given-up"] == 1
        reader, other = await leg(here.ip, incoming.token)
        async with asyncio.timeout(PATIENCE):
            # One that spoke before it closed is heard to the end.
            heard = await _all(reader)
            assert not ahead or not heard or heard == b"\x01" + ahead
            assert ahead or not heard
        other.transport.abort()
        await until(lambda: not here.relay.status().circuits and forgotten(here.relay), "the circuit is over")
        a.close()
        b.close()


async def _all(reader: asyncio.StreamReader) -> bytes:
    """What comes until the end; nothing if that is a reset."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("who", ["caller", "callee"])
async def test_a_leg_that_is_withdrawn_ends_the_circuit_at_once(tmp_path: Path, who: str) -> None:
    async with serving(tmp_path, AN_HOUR) as here:
        a, b = await here.client("a"), await here.client("b")
        await b.reserve()
        token = (await a.ask(connect=pb.Connect(peer="b"))).circuit.token
        incoming = (await b.hear()).incoming
        gone, stays = (a, incoming.token) if who == "caller" else (b, token)
        reader, writer = await leg(here.ip, stays)
        await until(lambda: len(here.relay._waiting), "one leg waits")
        for _ in range(2):  # the second time it is not known any more, and ignored
            await gone.say(withdraw=pb.Withdraw(token=token if who == "caller" else incoming.token))
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
        assert forgotten(here.relay) and here.relay.status().refused["given-up"] == 1
        await gone.ask(heartbeat=pb.Heartbeat())
        writer.transport.abort()
        a.close()
        b.close()


async def test_a_client_that_does_not_read_is_disconnected(tmp_path: Path) -> None:
    async with serving(tmp_path, limits()) as here:
        a = await here.client("a")
        (control,) = here.relay._controls.values()
        for _ in range(MAX_QUEUE + 1):  # as many callers could cause, faster than the writer runs
            control.send(0, Heartbeat())
        assert await a.ended()
        await until(lambda: not here.relay._controls, "it is gone")
        a.close()


async def test_close_leaves_nothing_open(tmp_path: Path) -> None:
    async with serving(tmp_path, limits()) as here:
        a, b = await here.client("a"), await here.client("b")
        await b.reserve()
        one, other = await circuit(a, b, "b")
        with socket.create_connection((here.ip, 20007)) as half_open:
            await until(lambda: here.relay.status().half_open == 1, "a third is half-open")
            await here.relay.close()
            assert await a.ended()
            assert await b.ended()
            half_open.settimeout(PATIENCE)
            with pytest.raises(ConnectionResetError):
                await asyncio.to_thread(half_open.recv, 1)
        async with asyncio.timeout(PATIENCE):
            for stream in (one, other):
                with pytest.raises(ConnectionResetError):
                    await stream[0].readexactly(1)
                stream[1].transport.abort()
        assert len(asyncio.all_tasks()) == 1
        a.close()
        b.close()


async def test_changes_are_told(tmp_path: Path) -> None:
    async with serving(tmp_path, limits()) as here:
        before = len(here.changes)
        b = await here.client("b")
        await b.reserve()
        assert len(here.changes) > before
        assert here.relay.report().serving
        b.close()


@pytest.mark.parametrize(
    ("address", "ip", "observed"),
    [
        (("192.0.2.1", 7), "192.0.2.1", "192.0.2.1:7"),
        (("::ffff:192.0.2.1", 7, 0, 0), "192.0.2.1", "192.0.2.1:7"),
        (("2001:db8::1", 7, 0, 0), "2001:db8::1", "[2001:db8::1]:7"),
    ],
)
def test_how_a_client_is_seen(address: Any, ip: str, observed: str) -> None:
    assert listener.endpoint(address) == (ip, observed)


def test_all_addresses_means_both_families() -> None:
    sock = listener.open_listener("", 0)
    with sock:
        port = sock.getsockname()[1]
        for host in ("127.0.0.1", "::1") if sock.family == socket.AF_INET6 else ("127.0.0.1",):
            try:
                socket.create_connection((host, port)).close()
            except OSError as error:
                if host == "::1":
                    pytest.skip(f"no IPv6 loopback here: {error}")
                raise


# --- reports to discovery ------------------------------------------------------------------------------------------


class Notebook(discovery_pb2_grpc.DiscoveryServiceServicer):
    """The part of discovery's contract that the relay calls."""

    def __init__(self) -> None:
        self.reports: list[discovery_pb2.RelayReport] = []

    async def ReportSelf(self, request: Any, context: Any) -> discovery_pb2.ReportSelfResponse:
        assert request.WhichOneof("component") == "relay"
        self.reports.append(request.relay)
        return discovery_pb2.ReportSelfResponse(revision=len(self.reports))


@asynccontextmanager
async def discovery(path: Path) -> AsyncIterator[Notebook]:
    notebook = Notebook()  # type: ignore[abstract]  # the relay calls nothing else
    server = grpc.aio.server()
    discovery_pb2_grpc.add_DiscoveryServiceServicer_to_server(notebook, server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield notebook
    finally:
        await server.stop(None)


async def test_discovery_is_told_of_role_load_and_end_and_again_after_its_restart(tmp_path: Path) -> None:
    process = RelayProcess(tmp_path)
    path = process.run_dir / "discovery.sock"
    try:
        async with discovery(path) as notebook:
            process.spawn()
            await until(lambda: notebook.reports, "the role is reported")
            report = notebook.reports[0]
            assert (report.port, report.HasField("role")) == (20007, True)
            assert (report.role.configured, report.role.draining, report.role.circuits) == (True, False, 0)
        async with discovery(path) as notebook:
            await until(lambda: notebook.reports, "the role is reported to the discovery that came back")
            a = await Client.greet(process.ip, identity(tmp_path, "a"))
            b = await Client.greet(process.ip, identity(tmp_path, "b"))
            await b.reserve()
            one, other = await circuit(a, b, "b")
            await until(lambda: notebook.reports[-1].role.circuits == 1, "the circuit is reported")
            process.signal(15)
            await until(lambda: notebook.reports[-1].role.draining, "the drain is reported")
            for stream in (one, other):
                stream[1].transport.abort()
            assert await process.wait() == 0
            assert not notebook.reports[-1].HasField("role")
            assert notebook.reports[-1].port == 20007
            a.close()
            b.close()
    finally:
        process.end()


async def test_a_node_that_is_no_relay_says_so_to_discovery(tmp_path: Path) -> None:
    process = RelayProcess(tmp_path, named=False)
    try:
        async with discovery(process.run_dir / "discovery.sock") as notebook:
            process.spawn()
            await until(lambda: notebook.reports, "the absent role is reported")
            assert not notebook.reports[0].HasField("role")
    finally:
        process.end()
