"""A real Causeway node at a place: its files, its processes, its status.

Every service is started by itself, without the supervisor, so that a test or the demo decides what dies and
when it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
import yaml
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lab.child import Child
from lab.manifest import Document, merged
from lab.place import Place
from protos import (
    discovery_pb2,
    discovery_pb2_grpc,
    proxy_pb2,
    proxy_pb2_grpc,
    relay_pb2,
    relay_pb2_grpc,
    tunnel_pb2,
    tunnel_pb2_grpc,
)

WITHOUT_RELAY = (tunnel_pb2.PATH_KIND_DIRECT, tunnel_pb2.PATH_KIND_PUNCHED)
"""A dial that comes while the other end punches counts as punched."""
SERVICES = ("discovery", "relay", "tunnel", "proxy")
CALL_TIMEOUT = 5.0  # seconds; a local call takes about a millisecond
NETCHECK_TIMEOUT = 30.0  # seconds; it ends within 12
LOG_TAIL = 15  # lines of a log in an error message


class NodeError(Exception):
    """A node did not do what its lab asked for; the message holds the end of its log."""


class Node:
    """One node. Start it, wait until it is ready, stop it."""

    def __init__(
        self,
        place: Place,
        folder: Path,
        *,
        psk: str,
        cluster: str = "lab",
        relays: Iterable[Place] = (),
        relay_mode: str = "auto",
        services: Sequence[Document] = (),
        modules: dict[str, dict[str, Any]] | None = None,
        config: Document | None = None,
    ) -> None:
        """Writes the node's files into `folder`, whose path must be short (it holds Unix sockets).

        relays: the places named in `relayNodes`. services: documents of its `servicesFile`. modules: more
        keys for the sections of `modules`, merged over what the lab sets. config: more keys for the whole
        configuration file, merged over that.
        """
        self.place = place
        self.name = place.name
        self.folder = folder
        self.run_dir = folder / "run"
        self.config_file = folder / "causeway.yaml"
        self.services_file = folder / "services.yaml"
        self._children: dict[str, Child] = {}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "psk").write_text(psk + "\n")
        (folder / "psk").chmod(0o600)
        self.publish(services)
        sections: dict[str, dict[str, Any]] = {
            # mDNS crosses loopback places of parallel labs; relays are known from the configuration.
            "edgeDiscovery": {"servicesFile": "services.yaml", "mdns": {"enable": place.namespace is not None}},
            "edgeTunnel": {
                "psk": {"enable": True, "path": "psk"},
                "relayNodes": [{"nodeName": it.name, "advertiseAddress": [it.address]} for it in relays],
                **({} if place.listens else {"listenPort": 0}),
            },
            "edgeRelay": {"mode": relay_mode},
            # On loopback it would be the machine's own nftables.
            "edgeProxy": {"interception": {"enable": "off" if place.namespace is None else "auto"}},
        }
        own: Document = {
            "nodeName": place.name,
            "cluster": cluster,
            "stateDir": "state",
            "runDir": "run",
            "listenAddress": place.listen_address,
            "modules": sections,
        }
        self.configure(merged(merged(own, {"modules": modules or {}}), config or {}))

    # -- files

    def configure(self, config: Document) -> None:
        """Writes the configuration file, in one step so that a running node never reads half of it."""
        _replace(self.config_file, [config])

    def publish(self, services: Sequence[Document]) -> None:
        """Writes the services file, in one step."""
        _replace(self.services_file, services)

    def log(self, service: str) -> Path:
        """What a service printed."""
        return self.folder / f"{service}.log"

    # -- processes

    def start(self, *services: str) -> None:
        """Starts the named services, all by default. Call from the main thread."""
        for service in services or SERVICES:
            if self.running(service):
                raise NodeError(f"{self.name}: {service} runs already")
            self._children[service] = Child.service(
                service, self.config_file, output=self.log(service), namespace=self.place.namespace
            )

    def running(self, service: str) -> bool:
        """Whether its process lives."""
        child = self._children.get(service)
        return child is not None and child.code is None

    @property
    def started(self) -> tuple[str, ...]:
        """Services that were started, whether they still run or not."""
        return tuple(self._children)

    def pid(self, service: str) -> int:
        """Process id of a service that was started."""
        return self._children[service].pid

    async def ready(self, *services: str, timeout: float = 30.0) -> None:
        """Waits until the named services, all by default, say that they serve. Raises NodeError."""
        await together(self._ready(service, timeout) for service in services or SERVICES)

    def signal(self, number: int, *services: str) -> None:
        """Sends a signal to the named services, all by default."""
        for service in services or tuple(self._children):
            self._children[service].signal(number)

    async def kill(self, *services: str) -> None:
        """SIGKILL, and waits until they are gone."""
        self.signal(signal.SIGKILL, *services)
        for service in services or tuple(self._children):
            await self._children[service].wait(CALL_TIMEOUT)

    async def stop(self, *services: str, timeout: float = 15.0) -> dict[str, int]:
        """SIGTERM, then SIGKILL to what is still there after `timeout` seconds. Returns the exit codes."""
        names = [it for it in services or tuple(self._children) if it in self._children]
        codes = await asyncio.gather(*(self._children[it].stop(timeout) for it in names))
        return dict(zip(names, codes, strict=True))

    async def restart(self, service: str) -> None:
        """Stops a service politely, starts it again and waits until it serves."""
        await self.stop(service)
        self.start(service)
        await self.ready(service)

    # -- being cut off

    def silence(self) -> None:
        """From now on nobody hears of this node and nobody is told: its wire goes dark, or it freezes."""
        if self.place.wire is not None:
            self.place.wire.cut()
        else:
            self.signal(signal.SIGSTOP)

    def unsilence(self) -> None:
        """Undoes `silence`."""
        if self.place.wire is not None:
            self.place.wire.mend()
        else:
            self.signal(signal.SIGCONT)

    # -- status

    async def discovery(self) -> discovery_pb2.GetStatusResponse:
        """Status of the discovery service."""
        async with self._channel("discovery") as channel:
            return await discovery_pb2_grpc.DiscoveryServiceStub(channel).GetStatus(
                discovery_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT
            )

    async def tunnel(self) -> tunnel_pb2.GetStatusResponse:
        """Status of the tunnel service."""
        async with self._channel("tunnel") as channel:
            return await tunnel_pb2_grpc.TunnelServiceStub(channel).GetStatus(
                tunnel_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT
            )

    async def explain(self, peer: str) -> tunnel_pb2.ExplainPeerResponse:
        """Every way to a peer, as the tunnel sees it."""
        async with self._channel("tunnel") as channel:
            return await tunnel_pb2_grpc.TunnelServiceStub(channel).ExplainPeer(
                tunnel_pb2.ExplainPeerRequest(node_name=peer), timeout=CALL_TIMEOUT
            )

    async def relay(self) -> relay_pb2.GetStatusResponse:
        """Status of the relay service."""
        async with self._channel("relay") as channel:
            return await relay_pb2_grpc.RelayServiceStub(channel).GetStatus(
                relay_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT
            )

    async def proxy(self) -> proxy_pb2.GetStatusResponse:
        """Status of the proxy service."""
        async with self._channel("proxy") as channel:
            return await proxy_pb2_grpc.ProxyServiceStub(channel).GetStatus(
                proxy_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT
            )

    async def status(self) -> dict[str, Any]:
        """All of it as plain data, by service; a service that does not answer is missing."""
        calls = {"discovery": self.discovery, "tunnel": self.tunnel, "relay": self.relay, "proxy": self.proxy}
        answers = await asyncio.gather(*(call() for call in calls.values()), return_exceptions=True)
        return {
            name: MessageToDict(answer, preserving_proto_field_name=True)
            for name, answer in zip(calls, answers, strict=True)
            if isinstance(answer, Message)
        }

    async def links(self, peer: str) -> list[tunnel_pb2.Link]:
        """Links of the session with a peer; empty without one."""
        return [link for session in (await self.tunnel()).sessions if session.peer == peer for link in session.links]

    async def active(self, peer: str) -> tunnel_pb2.Link | None:
        """The link in use to a peer."""
        return next((link for link in await self.links(peer) if link.state == "active"), None)

    async def ping(self, peer: str, *, timeout: float = 15.0) -> float:
        """Builds a session with a peer if there is none, and returns a round trip inside it in seconds."""
        request = tunnel_pb2.PingPeerRequest(node_name=peer)
        request.timeout.FromMilliseconds(round(timeout * 1000))
        async with self._channel("tunnel") as channel:
            answer = await tunnel_pb2_grpc.TunnelServiceStub(channel).PingPeer(request, timeout=timeout + CALL_TIMEOUT)
        return answer.rtts[0].ToNanoseconds() / 1e9

    async def netcheck(self) -> tunnel_pb2.NetCheckResponse:
        """What the node finds out about the NAT in front of it; takes seconds."""
        async with self._channel("tunnel") as channel:
            return await tunnel_pb2_grpc.TunnelServiceStub(channel).NetCheck(
                tunnel_pb2.NetCheckRequest(), timeout=NETCHECK_TIMEOUT
            )

    def tail(self, service: str) -> str:
        """The end of a service's log."""
        log = self.log(service)
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL:]) if log.exists() else ""

    @contextlib.asynccontextmanager
    async def _channel(self, service: str) -> AsyncIterator[grpc.aio.Channel]:
        target = f"unix:{self.run_dir / service}.sock"
        async with grpc.aio.insecure_channel(target, options=[("grpc.initial_reconnect_backoff_ms", 100)]) as channel:
            yield channel

    async def _ready(self, service: str, timeout: float) -> None:
        serving = asyncio.ensure_future(self._serving(service))
        ended = asyncio.ensure_future(self._children[service].wait(timeout))
        try:
            await asyncio.wait([serving, ended], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if serving.done() and serving.exception() is None:
                return
            if ended.done() and ended.exception() is None:
                what = f"ended with {ended.result()}"
            else:
                what = f"is not ready after {timeout:.0f} s"
            raise NodeError(f"{self.name}: {service} {what}; its log ends:\n{self.tail(service)}")
        finally:
            for task in (serving, ended):
                task.cancel()
            await asyncio.gather(serving, ended, return_exceptions=True)

    async def _serving(self, service: str) -> None:
        while True:
            async with self._channel(service) as channel:
                health = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
                watch = health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
                # A killed service's socket is still there for a moment: such a call breaks, and the next one waits.
                with contextlib.suppress(grpc.aio.AioRpcError):
                    async for answer in watch:
                        if answer.status == health_pb2.HealthCheckResponse.SERVING:
                            return
            await asyncio.sleep(0.02)


async def together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Runs coroutines beside each other; the first failure ends the others and is raised alone."""
    try:
        async with asyncio.TaskGroup() as group:
            for it in work:
                group.create_task(it)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _replace(path: Path, documents: Sequence[Document]) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    draft.replace(path)
