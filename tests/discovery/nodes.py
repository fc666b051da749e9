"""Discovery services under test, as processes, and as parts within the test's own process."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from lab.child import Child
from lab.namespace import Namespace
from protos import discovery_pb2 as pb
from protos import discovery_pb2_grpc as pb_grpc
from services.discovery.config import Settings
from services.discovery.directory import Directory
from services.runtime import config as configuration
from services.runtime import dial
from services.runtime.identity import Identity

# Seconds until something that must come counts as missing; machines are noisy.
PATIENCE = 60.0

T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T | None]], what: str, *nodes: Node) -> T:
    """What `look` finds, as soon as it finds something true; on failure with what the nodes said."""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                if found := await look():
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError:
        said = "".join(f"\n--- {node.config}\n{node.said()}" for node in nodes)
        raise AssertionError(f"in vain: {what}{said}") from None


class Node:
    """One discovery process, in a namespace of its own if one is given."""

    def __init__(self, config: Path, namespace: Namespace | None = None) -> None:
        self.config = config
        self.namespace = namespace
        self.run_dir = config.parent / "run"
        self.log = config.parent / "log"
        self.channel = dial.local_channel(self.run_dir, "discovery")
        self.stub: Any = pb_grpc.DiscoveryServiceStub(self.channel)
        self.process: Child | None = None
        self.environment: dict[str, str] = {}

    async def start(self) -> None:
        """Returns when the local socket takes calls (its file is there before anyone listens)."""
        debug = {"CAUSEWAY_LOG_LEVEL": "debug"}
        if self.environment:  # an interpreter of its own, which reads them
            command = [sys.executable, "-m", "services.discovery", "--config", str(self.config)]
            variables = [f"{name}={value}" for name, value in (debug | self.environment).items()]
            self.process = Child(["env", *variables, *command], output=self.log, namespace=self.namespace)
        else:
            self.process = Child.service(
                "discovery", self.config, output=self.log, namespace=self.namespace, environment=debug
            )
        await until(self._answers, "it serves", self)

    async def _answers(self) -> bool:
        if self.pid and self.process is not None and self.process.code is not None:
            raise AssertionError(f"exit code {self.process.code}:\n{self.said()}")
        # The channel may not know yet that the process before is gone; its socket's file is.
        there = (self.run_dir / "discovery.sock").exists()
        return there and self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self.process is not None
        return self.process.pid

    async def stop(self) -> int:
        """Asks it to end; returns the exit code."""
        assert self.process is not None
        return await self.process.stop(PATIENCE)

    def kill(self) -> None:
        """Ends it without a goodbye."""
        if self.process is not None and self.process.code is None:
            self.process.kill()
            (self.run_dir / "discovery.sock").unlink(missing_ok=True)

    def said(self) -> str:
        return self.log.read_text()

    async def status(self) -> pb.GetStatusResponse:
        return await self.stub.GetStatus(pb.GetStatusRequest(), timeout=PATIENCE, wait_for_ready=True)  # type: ignore[no-any-return]

    async def resolve(self, name: str, *, fresh: bool = False) -> pb.Peer:
        request = pb.ResolvePeerRequest(node_name=name, fresh=fresh)
        answer = await self.stub.ResolvePeer(request, timeout=PATIENCE, wait_for_ready=True)
        return answer.peer  # type: ignore[no-any-return]

    async def report(self, **component: Any) -> int:
        answer = await self.stub.ReportSelf(pb.ReportSelfRequest(**component), timeout=PATIENCE, wait_for_ready=True)
        return int(answer.revision)

    async def published(self) -> None:
        """Waits until the record is with every contact."""

        async def look() -> bool:
            text = (await self.status()).sources["lookup"]
            _, _, counts = text.partition("published at ")
            numbers = counts.split(";")[0].split(" of ")
            return len(numbers) == 2 and numbers[0] == numbers[1]

        await until(look, "it published", self)

    async def sees(self, name: str, check: Callable[[pb.Peer], bool] = lambda peer: peer.verified) -> pb.Peer:
        """Waits until the peer is known and as expected."""

        async def look() -> pb.Peer | None:
            found = {peer.record.node_name: peer for peer in (await self.status()).peers}
            return found[name] if name in found and check(found[name]) else None

        return await until(look, f"it knows {name}", self)


@asynccontextmanager
async def running(*configs: Path | Node) -> AsyncIterator[list[Node]]:
    """Processes that are up; they are ended with the block."""
    nodes = [Node(config) if isinstance(config, Path) else config for config in configs]
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        yield nodes
    finally:
        for node in nodes:
            node.kill()
            await node.channel.close()


@dataclass
class Part:
    """A directory with its identity, without any task."""

    directory: Directory
    identity: Identity
    settings: Settings


def part(config: Path, *, wall: Callable[[], float] | None = None) -> Part:
    """The directory that a process with this configuration would have."""
    loaded = configuration.load(config)
    identity = Identity.load(loaded)
    settings = Settings.of(loaded)
    log = logging.getLogger("causeway.discovery.test")
    directory = Directory(settings, identity, log, wall) if wall is not None else Directory(settings, identity, log)
    return Part(directory, identity, settings)
