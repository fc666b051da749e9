"""The DHT between real discovery processes: who is found through it, what outlives a restart, and what a flood does."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio
import psutil
import pytest

from lab.nat import Kind, Nat
from lab.network import Network
from lab.wire import Shape
from protos import discovery_pb2 as pb
from services.discovery import wire
from services.discovery.core.errors import TableFull
from services.discovery.core.model import Record, Signed, Source
from services.discovery.core.records import MAX_BYTES, MAX_RECORDS
from services.discovery.directory import MAX_VOLUNTEERS
from services.discovery.peers import NodeClient
from services.discovery.resolver import Resolver
from services.discovery.sources.dht import Dht
from services.runtime import dial

from ..conftest import WriteConfig
from ..e2e.conftest import require_simulation
from .caller import Caller
from .nodes import PATIENCE, Node, part, running, until

# Each test starts several processes.
pytestmark = pytest.mark.slow

Mesh = Callable[..., Path]
# A name server that never answers.
NO_DNS = """
import socket, time
real = socket.getaddrinfo
socket.getaddrinfo = lambda host, *a, **k: time.sleep(3600) if "invalid" in str(host) else real(host, *a, **k)
"""
# Pairs of calls, as fast as they go.
FLOOD = 150


@pytest.fixture
def chain(node_config: WriteConfig, loopback_ip: Callable[[], str]) -> Mesh:
    """`chain("b", "a")` writes the configuration of b, whose only first contact is a."""
    ips: dict[str, str] = {}

    def write(name: str, *contacts: str) -> Path:
        for node in (name, *contacts):
            ips.setdefault(node, loopback_ip())
        discovery = {"bootstrap": [ips[it] for it in contacts]}
        return node_config(name, listenAddress=ips[name], modules={"edgeDiscovery": discovery})

    return write


def at(node: Node, check: Callable[[pb.DhtStatus], bool]) -> Callable[[], Awaitable[bool]]:
    """What to wait for."""

    async def look() -> bool:
        return check((await node.status()).dht)

    return look


def holds(node: Node, *holders: str) -> Callable[[], Awaitable[bool]]:
    """To wait until exactly these are to keep the node's record."""
    return at(node, lambda dht: set(dht.holders) == set(holders))


async def test_a_name_that_no_contact_of_mine_was_told_is_found_through_the_dht(chain: Mesh) -> None:
    # b publishes at z, c asks x; x and z know each other over y only.
    nodes = ("x",), ("y", "x"), ("z", "y"), ("b", "z"), ("c", "x")
    async with running(*(chain(*it) for it in nodes)) as (x, _y, _z, b, c):
        await until(at(b, lambda dht: {"z"} < set(dht.holders)), "b finds servers beyond its contact", b)
        await until(at(c, lambda dht: dht.servers >= 2 and dht.server), "c is one of them", c)
        found = await c.resolve("b", fresh=True)
        assert found.verified and list(found.sources) == [pb.PEER_SOURCE_LOOKUP]

        async def nobody_twice() -> bool:
            status = await b.status()
            return status.sources["lookup"] == f"published at {len(status.dht.holders)} of {len(status.dht.holders)}"

        await until(nobody_twice, "the contact that is a holder too is counted once", b)
        status = await b.status()
        assert "server; " in status.sources["dht"] and "own record at" in status.sources["dht"]
        assert status.dht.HasField("refreshed") and (await x.status()).dht.records


async def test_after_a_restart_the_servers_of_the_last_run_are_asked(chain: Mesh) -> None:
    async with running(chain("x"), chain("y", "x"), chain("a", "x")) as (x, _y, a):
        await until(holds(a, "x", "y"), "a knows y from x", a)
        await a.stop()
        await x.stop()
        await a.start()
        await until(holds(a, "y"), "a finds y without its only contact", a)

        async def published() -> bool:
            return "published at 1 of 2" in (await a.status()).sources["lookup"]

        await until(published, "a publishes there", a)


async def test_f26_who_died_is_soon_named_to_nobody_and_its_place_is_taken(chain: Mesh) -> None:
    """FAILURES 26: stale entries in front of live ones, in others' tables and among one's own holders."""
    async with running(chain("x"), chain("y", "x"), chain("z", "x"), chain("a", "x")) as (x, y, _z, a):
        await until(holds(a, "x", "y", "z"), "a knows all", a)
        y.kill()
        port = 0

        async def replaced() -> bool:
            nonlocal port
            port += 1
            await a.report(tunnel=pb.TunnelReport(port=port))  # something to publish
            return set((await a.status()).dht.holders) == {"x", "z"}

        await until(replaced, "y is no holder any more", a)
        await a.published()
        caller = Caller(chain("visitor"), await _address(x), "x")

        async def named() -> set[str]:
            answer = await caller.stub.FindNode(pb.FindNodeRequest(node_name="y"), timeout=PATIENCE)
            return {server.node_name for server in answer.servers}

        async def forgotten() -> bool:
            return await named() == {"z", "a"}

        await until(forgotten, "x names the dead no more", x)
        await until(at(x, lambda dht: dht.servers == 2), "its place in x's table is free", x)
        await caller.channel.close()


async def test_f27_a_node_that_was_cut_off_has_lost_nobody(chain: Mesh) -> None:
    """FAILURES 27: own loss blamed on the peers. All others stop answering, as it looks to one whose network fails."""
    async with running(chain("x"), chain("y", "x"), chain("z", "x"), chain("a", "x")) as (x, y, z, a):
        await until(holds(a, "x", "y", "z"), "a knows all", a)
        others = [psutil.Process(node.pid) for node in (x, y, z)]
        for process in others:
            process.suspend()
        try:
            for number in (1, 2):
                # Each asks all servers, none of which answers.
                names = [f"nobody-{number}-{it}" for it in range(4)]
                results = await asyncio.gather(*map(a.resolve, names), return_exceptions=True)
                assert all(isinstance(it, grpc.aio.AioRpcError) for it in results)
            status = await a.status()
        finally:
            for process in others:
                process.resume()
        assert status.dht.servers == 3 and set(status.dht.holders) == {"x", "y", "z"}
        await a.published()
        assert (await a.status()).dht.servers == 3


@pytest.mark.lab
async def test_f27_a_lan_without_its_uplink_forgets_nobody_beyond_it(node_config: WriteConfig) -> None:
    """FAILURES 27: the same when neighbours answer all the time, so that it is not as plain whose fault it is."""
    require_simulation()
    with Network() as net:
        home = net.lan("home", shape=Shape(delay=0.001))
        hosts = [net.public("r"), net.public("s"), home.host("x"), home.host("y")]
        relays = [{"nodeName": "r", "advertiseAddress": [hosts[0].address]}]
        modules = {"edgeTunnel": {"relayNodes": relays}, "edgeDiscovery": {"mdns": {"enable": True}}}
        nodes = [Node(node_config(it.name, modules=modules), it.namespace) for it in hosts]
        async with running(*nodes) as (r, s, x, y):
            for node, other in ((x, "y"), (y, "x")):
                await until(holds(node, "r", "s", other), f"it knows r, s and {other}", node)
                await until(at(node, lambda dht: dht.server), "its neighbour has called it", node)
            # Who is behind a NAT is nobody's server outside.
            assert (await r.status()).dht.servers == (await s.status()).dht.servers == 1
            assert home.wire is not None
            home.wire.cut()
            for number in (1, 2, 3):
                names = [f"nobody-{number}-{it}" for it in range(2)]
                results = await asyncio.gather(*map(x.resolve, names), return_exceptions=True)
                assert all(isinstance(it, grpc.aio.AioRpcError) for it in results)
            standing = (await x.status()).dht
            assert standing.servers == 3 and set(standing.holders) == {"r", "s", "y"}
            home.wire.mend()
            await x.report(tunnel=pb.TunnelReport(port=1))
            await x.published()
            assert (await x.status()).dht.servers == 3


@pytest.mark.lab
async def test_a_node_that_is_told_nothing_learns_all_from_its_lan(node_config: WriteConfig) -> None:
    """The LAN is a first contact, too: y's file names nobody, and its neighbour x knows the relay r."""
    require_simulation()
    with Network() as net:
        home, far = net.lan("home", shape=Shape(delay=0.001)), net.lan("far", Nat(Kind.SYMMETRIC))
        hosts = {"r": net.public("r"), "x": home.host("x"), "y": home.host("y"), "c": far.host("c")}
        relays = [{"nodeName": "r", "advertiseAddress": [hosts["r"].address]}]

        def node(name: str, named: list[dict[str, object]]) -> Node:
            modules = {"edgeTunnel": {"relayNodes": named}, "edgeDiscovery": {"mdns": {"enable": True}}}
            return Node(node_config(name, modules=modules), hosts[name].namespace)

        async with running(*(node(name, relays if name != "y" else []) for name in hosts)) as (r, _, y, c):
            await r.report(relay=pb.RelayReport(port=20007, role=pb.RelayRole(configured=True)))
            await y.sees("r", lambda peer: peer.verified and peer.record.HasField("relay"))
            await until(at(y, lambda dht: "r" in dht.holders), "its record is kept beyond the LAN", y)
            await y.published()
            assert (await y.resolve("c", fresh=True)).verified
            assert (await c.resolve("y", fresh=True)).verified


async def test_f29_neither_silent_contacts_nor_broken_dns_hold_up_the_start(
    chain: Mesh, node_config: WriteConfig, loopback_ip: Callable[[], str], short_path: Path
) -> None:
    """FAILURES 29: the start waits for first contacts, or for a name server that never answers."""
    with socket.create_server((loopback_ip(), 0), backlog=1) as silent, contextlib.ExitStack() as stack:
        # Once its queue is full, a connection is neither accepted nor refused.
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        where = ":".join(map(str, silent.getsockname()))
        named = [{"nodeName": f"r{it}", "advertiseAddress": [f"r{it}.example.invalid"]} for it in range(3)]
        modules = {
            "edgeDiscovery": {"bootstrap": [where, "contact.example.invalid"]},
            "edgeTunnel": {"relayNodes": named, "advertiseAddress": ["own.example.invalid"]},
        }
        node = Node(node_config("a", listenAddress=loopback_ip(), modules=modules))
        (short_path / "sitecustomize.py").write_text(NO_DNS)
        node.environment = {"PYTHONPATH": str(short_path)}
        began = time.monotonic()
        async with running(chain("plain")) as (plain,):
            await plain.status()
            normal = time.monotonic() - began
        began = time.monotonic()
        async with running(node) as (a,):
            assert (await a.resolve("a")).verified
            seconds = time.monotonic() - began
            assert seconds < 3 * normal + 5, "as long as any start takes on this machine at this time"

            async def silence() -> bool:
                return f"{where}: no answer" in (await a.status()).sources["lookup"]

            await until(silence, "it says who does not answer", a)
            assert await a.stop() == 0


async def test_a_flood_costs_bounded_memory_and_honest_lookups_work(chain: Mesh) -> None:
    async with running(chain("x"), chain("y", "x"), chain("a", "y")) as (x, y, a):
        await until(at(x, lambda dht: dht.records >= 2), "x keeps what honest nodes publish", x)
        await until(at(a, lambda dht: "x" in dht.holders), "a knows x", a)
        caller = Caller(chain("villain"), await _address(x), "x")
        before = psutil.Process(x.pid).memory_info().rss
        kinds = (
            caller.seal(instance_id="i" * 40_000),  # beyond what a record may have
            caller.seal(instance_id="i" * 100_000),  # beyond what a message may have
            caller.seal(node_name="a"),  # somebody else's name
            wire.seal(caller.identity, caller.record(issued_at=1.0, expires_at=2.0)),
        )
        refused = 0
        requests = [pb.PutRecordRequest(record=wire.signed_to_wire(it)) for it in kinds]
        garbage = pb.PingRequest(relays=[pb.SignedRecord(record=b"r" * 5000, certificate=b"c")] * 8)
        for _ in range(0, FLOOD, 2 * len(requests)):  # so many at once, or a busy machine would be too slow for a flood
            puts = (caller.stub.PutRecord(request, timeout=PATIENCE) for request in 2 * requests)
            pings = (caller.stub.Ping(garbage, timeout=PATIENCE) for _ in 2 * requests)
            results = await asyncio.gather(*puts, *pings, return_exceptions=True)
            for result in results:
                if isinstance(result, grpc.aio.AioRpcError):
                    assert result.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.PERMISSION_DENIED) or (
                        result.code() is grpc.StatusCode.FAILED_PRECONDITION
                    )
                    refused += dial.reason(result) == "TOO_MANY_CALLS"
        assert refused > 0, "beyond so many calls a second they are not even looked at"
        await caller.channel.close()
        status = await x.status()
        assert status.dht.records <= 3 and status.dht.record_bytes <= MAX_BYTES
        assert not status.dht.relays and {it.record.node_name for it in status.peers} <= {"a", "y"}
        assert psutil.Process(x.pid).memory_info().rss < before + (64 << 20)
        assert (await a.resolve("x", fresh=True)).verified
        assert (await y.resolve("a", fresh=True)).verified


async def test_a_flood_of_names_leaves_room_for_those_that_are_looked_for(chain: Mesh) -> None:
    """The holder of a PSK can be as many nodes as it likes."""
    made = part(chain("x"))
    directory = made.directory
    dht = Dht(directory, NodeClient(made.identity, Resolver()), random.Random(1))
    now = time.time()
    for number in range(2 * MAX_VOLUNTEERS):
        record = Record(f"bogus-{number}", "default", 1, now, now + 600)
        try:
            dht.keep(record, Signed(b"r" * 1000, b"", b""))
        except TableFull:
            pass
    assert len(directory.registry) == MAX_VOLUNTEERS
    wanted = Record("wanted", "default", 1, now, now + 600)
    directory.registry.offer(wanted, Signed(b"", b"", b""), Source.LOOKUP, now)
    assert len(dht.overlay.records) == MAX_RECORDS and dht.overlay.records.bytes <= MAX_BYTES


async def _address(node: Node) -> str:
    return (await node.status()).self.addresses[0].ip
