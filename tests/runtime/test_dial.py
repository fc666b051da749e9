"""`follow` against a real server that is stopped, restarted and forgets."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from protos import discovery_pb2 as pb
from protos import discovery_pb2_grpc as rpc
from services.runtime import dial, serve
from tests.patience import until


class Discovery:
    """A registry of names, one for each revision, that may have forgotten the first ones."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.compacted = 0
        self.resumed: list[int] = []
        self.changed = asyncio.Condition()

    async def add(self, *names: str) -> None:
        async with self.changed:
            self.names += names
            self.changed.notify_all()

    async def watch(self, request: pb.WatchPeersRequest, context: Any) -> AsyncIterator[pb.WatchPeersResponse]:
        position = request.resume_revision
        self.resumed.append(position)
        if position and not self.compacted <= position <= len(self.names):
            await serve.abort(context, grpc.StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED", "watch again from 0")
        synced = bool(position)
        while True:
            for name in self.names[position:]:
                position += 1
                peer = pb.Peer(record=pb.PeerRecord(node_name=name))
                yield pb.WatchPeersResponse(revision=position, added=peer)
            if not synced:
                synced = True
                yield pb.WatchPeersResponse(revision=position, synced=True)
            async with self.changed:
                while len(self.names) <= position:
                    await self.changed.wait()


async def started(discovery: Discovery, path: Path) -> grpc.aio.Server:
    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(
        discovery.watch, pb.WatchPeersRequest.FromString, pb.WatchPeersResponse.SerializeToString
    )
    generic = grpc.method_handlers_generic_handler("causeway.discovery.v1.DiscoveryService", {"WatchPeers": handler})
    server.add_generic_rpc_handlers((generic,))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    return server


class Follower:
    """What a consumer does with a watch."""

    def __init__(self, run_dir: Path) -> None:
        self.events: list[str] = []
        self.channel = dial.local_channel(run_dir, "discovery")
        stub: Any = rpc.DiscoveryServiceStub(self.channel)
        self.task = asyncio.create_task(
            dial.follow(
                lambda revision: stub.WatchPeers(pb.WatchPeersRequest(resume_revision=revision)),
                self.take,
                name="peers",
                on_relist=lambda: self.events.append("relist"),
            )
        )

    async def take(self, response: pb.WatchPeersResponse) -> None:
        self.events.append(response.added.record.node_name if response.HasField("added") else "synced")

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.channel.close(None)


async def test_follow_survives_everything(short_path: Path) -> None:
    discovery = Discovery()
    follower = Follower(short_path)
    try:
        # Nobody is there yet.
        await asyncio.sleep(0.05)
        assert follower.events == ["relist"] * len(follower.events)
        follower.events.clear()
        discovery.names = ["a", "b"]
        server = await started(discovery, short_path / "discovery.sock")
        await until(lambda: "synced" in follower.events)
        assert [event for event in follower.events if event != "relist"] == ["a", "b", "synced"]
        await discovery.add("c")
        await until(lambda: follower.events[-1] == "c")

        # A restart: resumes where it was, and misses nothing that happened meanwhile.
        follower.events.clear()
        await server.stop(None)
        discovery.names += ["d"]
        server = await started(discovery, short_path / "discovery.sock")
        await until(lambda: follower.events == ["d"])
        assert discovery.resumed[-1] == 3

        # What it has seen is compacted: starts over and is told so.
        follower.events.clear()
        await server.stop(None)
        discovery.names += ["e"]
        discovery.compacted = 5
        server = await started(discovery, short_path / "discovery.sock")
        await until(lambda: follower.events == ["relist", "a", "b", "c", "d", "e", "synced"])

        # A registry that lost everything: its revisions are behind.
        follower.events.clear()
        await server.stop(None)
        discovery.names = ["z"]
        server = await started(discovery, short_path / "discovery.sock")
        await until(lambda: follower.events == ["relist", "z", "synced"])
        await server.stop(None)
    finally:
        await follower.stop()


async def test_a_mistake_in_the_consumer_is_not_hidden(short_path: Path) -> None:
    discovery = Discovery()
    discovery.names = ["a"]
    server = await started(discovery, short_path / "discovery.sock")

    def broken(_: Any) -> None:
        raise KeyError("mine")

    async with dial.local_channel(short_path, "discovery") as channel:
        stub: Any = rpc.DiscoveryServiceStub(channel)
        with pytest.raises(KeyError, match="mine"):
            await asyncio.wait_for(
                dial.follow(lambda revision: stub.WatchPeers(pb.WatchPeersRequest()), broken, name="peers"), 30
            )
    await server.stop(None)


async def test_interruption_is_logged_once(short_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    follower = Follower(short_path)
    try:
        with caplog.at_level("INFO", logger="causeway"):
            await until(lambda: follower.events.count("relist") >= 3)
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            discovery = Discovery()
            server = await started(discovery, short_path / "discovery.sock")
            await until(lambda: "synced" in follower.events)
            assert [record.message for record in caplog.records][1:] == ["watch resumed"]
            await server.stop(None)
    finally:
        await follower.stop()


async def test_a_call_has_a_deadline(short_path: Path) -> None:
    async with dial.local_channel(short_path, "nobody") as channel:
        stub = rpc.DiscoveryServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await dial.call(stub.GetStatus, pb.GetStatusRequest(), timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_service_that_greets_late_is_not_given_up(short_path: Path) -> None:
    """It is there, and busy: half a second passes before it takes the connection."""
    discovery = Discovery()
    await discovery.add("a")
    server = await started(discovery, short_path / "behind")
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        behind, to = await asyncio.open_unix_connection(short_path / "behind")
        pumps.update({asyncio.create_task(pump(reader, to)), asyncio.create_task(pump(behind, writer))})

    async with (
        await asyncio.start_unix_server(late, short_path / "discovery.sock"),
        dial.local_channel(short_path, "discovery") as channel,
    ):
        watch = rpc.DiscoveryServiceStub(channel).WatchPeers(pb.WatchPeersRequest())  # type: ignore[no-untyped-call]
        assert (await anext(aiter(watch))).added.record.node_name == "a"
        watch.cancel()
    for one in pumps:
        one.cancel()
    await asyncio.gather(*pumps, return_exceptions=True)
    await server.stop(None)
