"""Real discovery processes: publishing and resolving through a configured relay, refusals, restarts."""

import asyncio
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from protos import discovery_pb2 as pb
from services.runtime import dial

from ..conftest import WriteConfig
from .caller import Caller
from .nodes import PATIENCE, Node, running, until
from .test_manifests import WEB

# Each test starts several processes.
pytestmark = pytest.mark.slow

MakeIp = Callable[[], str]


@pytest.fixture
def mesh(node_config: WriteConfig, loopback_ip: MakeIp) -> Callable[..., Path]:
    """`mesh("a")` writes the configuration of a node that knows the relay "r"."""
    ips: dict[str, str] = {"r": loopback_ip()}

    def write(
        name: str, *, relays: tuple[str, ...] = ("r",), discovery: dict[str, Any] | None = None, **keys: Any
    ) -> Path:
        for node in (name, *relays):
            ips.setdefault(node, loopback_ip())
        named = [{"nodeName": relay, "advertiseAddress": [ips[relay]]} for relay in relays]
        keys.setdefault("listenAddress", ips[name])
        modules = {"edgeTunnel": {"relayNodes": named}, "edgeDiscovery": discovery or {}}
        return node_config(name, modules=modules, **keys)

    return write


async def test_nodes_find_each_other_through_a_relay(mesh: Callable[..., Path]) -> None:
    async with running(mesh("r"), mesh("a"), mesh("b")) as (r, a, b):
        revision = await b.report(tunnel=pb.TunnelReport(port=20006, reservations=[pb.Reservation(relay="r")]))
        await r.sees("b", lambda peer: peer.record.revision >= revision)
        await a.published()
        found = await a.resolve("b", fresh=True)
        assert found.verified and found.record.node_name == "b"
        assert list(found.sources) == [pb.PEER_SOURCE_LOOKUP]
        assert [x.relay for x in found.record.reservations] == ["r"]
        assert [x.source for x in found.record.addresses] == [pb.ADDRESS_SOURCE_INTERFACE]
        # The relay's own record came with the answers, and it has everybody's.
        relay = await a.sees("r")
        assert relay.relay_rank == 1 and list(relay.sources) == [pb.PEER_SOURCE_CONFIG, pb.PEER_SOURCE_LOOKUP]
        assert [x.source for x in relay.record.addresses] == [pb.ADDRESS_SOURCE_ADVERTISED]
        assert {p.record.node_name for p in (await r.status()).peers} == {"a", "b"}
        # A change is with the relay before anybody has to ask twice.
        revision = await b.report(tunnel=pb.TunnelReport(port=0))
        await r.sees("b", lambda peer: peer.record.revision >= revision and not peer.record.reservations)
        assert (await a.resolve("b", fresh=True)).record.tunnel_port == 0
        # Oneself is not a peer, but can be asked for.
        myself = await a.resolve("a")
        assert myself.verified and list(myself.sources) == [pb.PEER_SOURCE_SELF]
        assert "a" not in {p.record.node_name for p in (await a.status()).peers}


async def test_nobody_knows_a_stranger(mesh: Callable[..., Path]) -> None:
    async with running(mesh("r"), mesh("a")) as (_, a):
        await a.published()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await a.resolve("nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert dial.reason(caught.value) == "UNKNOWN_NODE"
        assert (
            caught.value.details() == "nobody knows the node nobody: 1 asked, 1 answered; servers of the DHT asked: 1"
        )


async def test_nobody_who_may_know_a_stranger_answers(mesh: Callable[..., Path]) -> None:
    """That is another thing: it may well be there."""
    async with running(mesh("r"), mesh("a")) as (r, a):
        # The relay has nobody to ask: all others tell it of themselves.
        for node, code, reason in (
            (r, grpc.StatusCode.NOT_FOUND, "UNKNOWN_NODE"),
            (a, grpc.StatusCode.UNAVAILABLE, "NOBODY_ANSWERED"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await node.resolve("nobody")
            assert (caught.value.code(), dial.reason(caught.value)) == (code, reason)
            if node is r:
                await r.stop()


async def test_whoever_serves_as_relay_is_published_at_too(mesh: Callable[..., Path]) -> None:
    async with running(mesh("r"), mesh("x"), mesh("a")) as (r, x, a):
        revision = await x.report(relay=pb.RelayReport(port=30007, role=pb.RelayRole(load_permille=7)))
        await r.sees("x", lambda peer: peer.record.revision >= revision)
        await a.published()
        found = await a.resolve("x")
        assert found.record.relay.load_permille == 7 and found.record.relay_port == 30007

        async def twice() -> bool:
            return (await a.status()).sources["lookup"] == "published at 2 of 2"

        await until(twice, "a publishes at x")
        assert (await x.sees("a")).verified
        await x.report(relay=pb.RelayReport(port=30007))
        # x itself is asked too, so this does not depend on when r hears of it.
        assert not (await a.resolve("x", fresh=True)).record.HasField("relay")

        # It still keeps records, as a server of the DHT.
        assert (await a.status()).sources["lookup"] == "published at 2 of 2"


async def test_a_first_contact_is_known_by_its_address_only(mesh: Callable[..., Path], loopback_ip: MakeIp) -> None:
    ip = loopback_ip()
    host = mesh("x", relays=(), listenAddress=ip)
    guest = mesh("a", relays=(), discovery={"bootstrap": [ip]})
    own = loopback_ip()
    alone = mesh("b", relays=(), listenAddress=own, discovery={"bootstrap": [own]})
    async with running(host, guest, alone) as (x, a, b):
        await a.published()
        assert (await a.sees("x")).record.addresses[0].ip == ip
        assert (await x.sees("a")).verified

        async def itself() -> bool:
            return "this is b itself" in (await b.status()).sources["lookup"]

        await until(itself, "b recognises itself")


@pytest.mark.parametrize(
    ("stranger", "says"),
    [
        ({"psk": "another-secret-0123456789-0123456789"}, "wrong-psk: r and s do not have the same PSK"),
        ({"cluster": "elsewhere"}, "wrong-cluster: r belongs to the cluster 'default' and s to 'elsewhere'"),
    ],
)
async def test_a_stranger_is_told_why(mesh: Callable[..., Path], stranger: dict[str, str], says: str) -> None:
    async with running(mesh("r"), mesh("s", **stranger)) as (r, s):

        async def told() -> bool:
            return says in (await s.status()).sources["lookup"]

        await until(told, f"s says {says}", s)
        assert says in s.said()
        assert not (await r.status()).peers
        assert not any(peer.verified for peer in (await s.status()).peers)


async def test_another_node_at_the_address_is_named(mesh: Callable[..., Path], loopback_ip: MakeIp) -> None:
    ip = loopback_ip()
    async with running(mesh("x", relays=(), listenAddress=ip), mesh("a")) as (_, a):
        text = a.config.read_text()
        (line,) = (await a.status()).peers[0].record.addresses
        await a.stop()
        a.config.write_text(text.replace(line.ip, ip))
        await a.start()

        async def told() -> bool:
            return "name-mismatch: expected r, but the certificate says x" in (await a.status()).sources["lookup"]

        await until(told, "a says who is there", a)


async def test_a_dead_relay_is_named_and_found_again(mesh: Callable[..., Path]) -> None:
    relay = mesh("r")
    async with running(mesh("a")) as (a,):

        async def refused() -> bool:
            return "Connection refused" in (await a.status()).sources["lookup"]

        await until(refused, "a says that nobody is there")
        async with running(relay) as (r,):
            await a.published()
            assert (await r.sees("a")).verified


async def test_watchers_live_through_a_restart(mesh: Callable[..., Path]) -> None:
    async with running(mesh("r"), mesh("a")) as (r, a):
        known: dict[str, pb.Peer] = {}
        listed: set[str] = set()
        events: list[str] = []

        def take(event: pb.WatchPeersResponse) -> None:
            kind = event.WhichOneof("event") or ""
            events.append(kind)
            if kind == "added":
                known[event.added.record.node_name] = event.added
                listed.add(event.added.record.node_name)
            elif kind == "removed":
                known.pop(event.removed, None)
            elif kind == "synced":
                for name in known.keys() - listed:
                    del known[name]

        def open_watch(revision: int) -> Any:
            return r.stub.WatchPeers(pb.WatchPeersRequest(resume_revision=revision), wait_for_ready=True)

        watching = asyncio.create_task(dial.follow(open_watch, take, name="peers", on_relist=listed.clear))
        try:

            async def knows_a() -> bool:
                return "a" in known and known["a"].verified

            await until(knows_a, "the watcher learns of a")
            assert await r.stop() == 0
            known.clear()
            await r.start()
            # a's record comes from the cache at once, and from a itself when it publishes again.
            await until(knows_a, "the watcher learns of a again")
            assert events.count("synced") >= 2
            revision = await a.report(tunnel=pb.TunnelReport(port=4711))

            async def changed() -> bool:
                return known["a"].record.revision >= revision

            await until(changed, "the watcher sees the change")
            assert known["a"].record.tunnel_port == 4711
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def test_a_watch_resumes_where_it_stopped(mesh: Callable[..., Path]) -> None:
    async with running(mesh("r"), mesh("a")) as (r, a):
        await a.published()

        async def watch(revision: int, until_event: str) -> list[pb.WatchPeersResponse]:
            call = r.stub.WatchPeers(pb.WatchPeersRequest(resume_revision=revision), timeout=PATIENCE)
            events = []
            async for event in call:
                events.append(event)
                if event.WhichOneof("event") == until_event:
                    break
            call.cancel()
            return events

        first = await watch(0, "synced")
        assert [e.WhichOneof("event") for e in first] == ["added", "synced"]
        (accepted,) = await watch(first[-1].revision, "progress")
        assert accepted.revision == first[-1].revision
        await a.report(tunnel=pb.TunnelReport(port=1))
        later = await watch(first[-1].revision, "added")
        assert [e.WhichOneof("event") for e in later] == ["progress", "added"]
        for bad in (1, first[-1].revision + 1000):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await watch(bad, "added")
            assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
            assert dial.reason(caught.value) == "REVISION_COMPACTED"


async def test_a_restarted_node_keeps_its_reservations_published(mesh: Callable[..., Path]) -> None:
    async with running(mesh("r"), mesh("a")) as (r, a):
        reservations = [pb.Reservation(relay="r")]
        await a.report(tunnel=pb.TunnelReport(port=20006, reservations=reservations))
        before = await r.sees("a", lambda peer: len(peer.record.reservations) == 1)
        assert await a.stop() == 0
        await a.start()
        after = await r.sees("a", lambda peer: peer.record.instance_id != before.record.instance_id)
        assert [x.relay for x in after.record.reservations] == ["r"]
        assert after.record.revision > before.record.revision
        assert not (await a.status()).warnings  # a former self is no duplicate


async def test_an_offline_restart_remembers_the_peers(mesh: Callable[..., Path]) -> None:
    async with running(mesh("r"), mesh("a"), mesh("b")) as (r, a, b):
        await asyncio.gather(a.published(), b.published())
        address = (await a.resolve("b")).record.addresses[0].ip
        await a.stop()
        b.kill()
        r.kill()
        await a.start()
        found = await a.sees("b")
        assert found.record.addresses[0].ip == address and list(found.sources) == [pb.PEER_SOURCE_CACHE]
        assert (await a.resolve("b", fresh=True)).record.addresses[0].ip == address
        assert (await a.sees("r")).relay_rank == 1
        assert "2 peers remembered" in (await a.status()).sources["cache"]


async def test_an_offline_restart_remembers_the_services(mesh: Callable[..., Path], short_path: Path) -> None:
    file = short_path / "services.yaml"
    file.write_text(WEB)
    async with running(mesh("a", relays=(), discovery={"servicesFile": str(file)})) as (a,):
        copy = a.config.parent / "state" / "services.last"

        async def kept() -> bool:
            return copy.exists()

        await until(kept, "the file was copied", a)
        a.kill()
        file.unlink()
        await a.start()
        # A watcher gets them before it is told that it has all.
        call = a.stub.WatchServices(pb.WatchServicesRequest(), timeout=PATIENCE)
        assert (await call.read()).added.name == "web"
        assert (await call.read()).synced
        call.cancel()
        (warning,) = (await a.status()).warnings
        assert "no such file" in warning and warning.endswith("services that it had when it was last read are used")


async def test_a_damaged_cache_is_set_aside(mesh: Callable[..., Path]) -> None:
    async with running(mesh("r"), mesh("a")) as (_, a):
        await a.sees("r")
        await a.stop()
        state = a.config.parent / "state"
        cache = state / "registry.json"
        cache.write_bytes(cache.read_bytes()[:-40])
        await a.start()
        (warning,) = (await a.status()).warnings
        assert "its checksum is wrong" in warning and "registry.bad" in warning
        assert (state / "registry.bad").exists()
        await a.published()
        await a.stop()
        await a.start()
        assert not (await a.status()).warnings


async def test_f28_one_name_on_two_machines_raises_an_alarm_on_both(
    mesh: Callable[..., Path], short_path: Path, loopback_ip: MakeIp
) -> None:
    """FAILURES 28: two machines with one name, which meet at a relay only."""
    first = mesh("a")
    twin = short_path / "twin"
    shutil.copytree(first.parent, twin)
    text = first.read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("listenAddress")]
    (twin / first.name).write_text(text.replace(line, f"listenAddress: {loopback_ip()}"))
    async with running(mesh("r"), first, twin / first.name) as (r, a, b):
        port = 0

        async def alarmed(node: Node, other: Node) -> bool:
            # Each publication meets the other's.
            nonlocal port
            port += 1
            await node.report(tunnel=pb.TunnelReport(port=port))
            await node.published()
            instance = (await other.status()).self.instance_id
            return any("duplicate identity" in text and instance in text for text in (await node.status()).warnings)

        async def both() -> bool:
            found = [await alarmed(a, b), await alarmed(b, a)]
            return all(found)

        await until(both, "both see the duplicate")
        assert len((await r.status()).peers) == 1


async def test_reflection_and_health_answer(mesh: Callable[..., Path]) -> None:
    from google.protobuf import descriptor_pb2
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async with running(mesh("a", relays=())) as (a,):
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(a.channel)
        asks = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="causeway.discovery.v1.DiscoveryService"),
        ]
        answers = [answer async for answer in stub.ServerReflectionInfo(iter(asks), timeout=PATIENCE)]
        names = {service.name for service in answers[0].list_services_response.service}
        assert names >= {"causeway.discovery.v1.DiscoveryService", "grpc.health.v1.Health"}
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(data)
            for data in answers[1].file_descriptor_response.file_descriptor_proto
        ]
        (contract,) = [file for file in files if file.name == "protos/discovery.proto"]
        methods = {method.name for service in contract.service for method in service.method}
        assert methods >= {"WatchPeers", "WatchServices", "ResolvePeer", "ReportSelf", "GetStatus"}
        health: Any = health_pb2_grpc.HealthStub(a.channel)  # type: ignore[no-untyped-call]
        for name in ("", "causeway.discovery.v1.DiscoveryService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_port_that_is_taken_is_a_warning_and_tried_again(
    mesh: Callable[..., Path], loopback_ip: MakeIp
) -> None:
    ip = loopback_ip()
    holder = await asyncio.start_server(lambda *_: None, ip, 20008)
    async with running(mesh("a", relays=(), listenAddress=ip)) as (a,):

        async def taken() -> bool:
            return any(f"port 20008 is taken at {ip}" in text for text in (await a.status()).warnings)

        await until(taken, "a says that the port is taken")
        holder.close()
        await holder.wait_closed()

        async def served() -> bool:
            status = await a.status()
            return status.sources["public"] == f"listening on {ip}:20008" and not status.warnings

        await until(served, "a takes the port when it is free")


@pytest.mark.parametrize(
    "request_", [pb.ReportSelfRequest(), pb.ReportSelfRequest(tunnel=pb.TunnelReport(observed=[pb.Address(ip="x")]))]
)
async def test_a_report_that_is_none_is_refused(mesh: Callable[..., Path], request_: pb.ReportSelfRequest) -> None:
    async with running(mesh("a", relays=())) as (a,):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await a.stub.ReportSelf(request_, timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_relay_that_hangs_does_not_keep_an_answer(mesh: Callable[..., Path]) -> None:
    async with running(mesh("r"), mesh("s", relays=()), mesh("a", relays=("r", "s")), mesh("b")) as (r, s, a, b):
        await b.published()
        await a.published()
        await s.sees("a")
        revision = await b.report(tunnel=pb.TunnelReport(port=4711))
        await r.sees("b", lambda peer: peer.record.revision >= revision)
        found = await a.resolve("b", fresh=True)
        assert found.record.tunnel_port == 4711
        # One relay that hangs does not keep the answer of the other.
        assert s.process is not None
        s.process.signal(signal.SIGSTOP)
        revision = await b.report(tunnel=pb.TunnelReport(port=4712))
        await r.sees("b", lambda peer: peer.record.revision >= revision)
        assert (await a.resolve("b", fresh=True)).record.tunnel_port == 4712
        # And when nobody answers, what is at hand is still given.
        r.kill()
        b.kill()
        assert (await a.resolve("b", fresh=True)).record.tunnel_port == 4712


async def test_a_fresh_lookup_takes_the_newest_of_several_answers(
    mesh: Callable[..., Path], node_config: WriteConfig
) -> None:
    async with running(mesh("r"), mesh("s", relays=()), mesh("a", relays=("r", "s"))) as (r, s, a):
        await a.published()
        hosts = [(await node.status()).self.addresses[0].ip for node in (r, s)]
        config = node_config("b")
        for old, new in ((1, 2), (4, 3)):
            for (name, host), revision in zip((("r", hosts[0]), ("s", hosts[1])), (old, new), strict=True):
                b = Caller(config, host, name)
                await b.put(b.seal(revision=revision))
                await b.channel.close()
            found = await a.resolve("b", fresh=True)
            assert found.record.revision == max(old, new)
