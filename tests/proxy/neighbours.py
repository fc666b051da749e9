"""The proxy's neighbours, as far as their contracts go: real gRPC servers and a real attach socket.

They keep the promises of tunnel.proto and discovery.proto towards a proxy and do nothing else; whole nodes are tested
in tests/e2e.
"""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from protos import discovery_pb2, discovery_pb2_grpc, tunnel_pb2, tunnel_pb2_grpc

OFFERS = 12  # in one message
TCP, UDP = tunnel_pb2.NETWORK_TCP, tunnel_pb2.NETWORK_UDP


class Tunnel(tunnel_pb2_grpc.TunnelServiceServicer):
    """Takes what the proxy attaches, and makes offers. May be stopped and started again, or be deaf for a while."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._loop = asyncio.get_running_loop()
        self._server: grpc.aio.Server | None = None
        self._listening: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self._offers: dict[bytes, tunnel_pb2.Offer] = {}  # not answered yet
        self._untold: list[tunnel_pb2.Offer] = []
        self._listener: socket.socket | None = None
        self._answers: dict[bytes, asyncio.Future[tuple[tunnel_pb2.Attach, socket.socket | None]]] = {}
        self.opened: asyncio.Queue[tuple[tunnel_pb2.Attach, socket.socket, socket.socket]] = asyncio.Queue()
        self.refusal: tunnel_pb2.Refusal | None = None  # what every client gets instead of a stream
        self.relayed: set[str] = set()  # nodes to which the path goes through a relay
        self.mute = False  # tests answer themselves those who are kept
        self.read_ahead = 0  # bytes to have read of a client that is refused
        self.listeners = 0  # connections that asked for offers, since the start
        self._deaf = False
        self.status = tunnel_pb2.GetStatusResponse()

    async def start(self) -> None:
        for name in ("tunnel.sock", "tunnel.attach"):
            (self._run_dir / name).unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listening.bind(str(self._run_dir / "tunnel.attach"))
        self._listening.listen(16)
        self._loop.add_reader(self._listening, self._accept)
        self._server = grpc.aio.server()
        tunnel_pb2_grpc.add_TunnelServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self._run_dir}/tunnel.sock")
        await self._server.start()

    async def stop(self) -> None:
        if self._listening is None or self._server is None:
            return
        for connection in [self._listening, *self._connections]:
            self._loop.remove_reader(connection)
            connection.close()
        self._connections.clear()
        self._listener = None
        await self._server.stop(0)
        self._listening = self._server = None
        while not self.opened.empty():
            self.opened.get_nowait()[1].close()

    def set_deaf(self, deaf: bool) -> None:
        """Whether to leave what the proxy sends unread."""
        self._deaf = deaf
        for connection in self._connections:
            self._loop.remove_reader(connection)
            if not deaf:
                self._loop.add_reader(connection, self._receive, connection)

    async def next(self) -> tuple[tunnel_pb2.Outbound, socket.socket]:
        """The next client that the proxy hands over."""
        asked = await self.asked()
        return asked.open, asked.sock

    async def asked(self) -> "Asked":
        """The same, to be answered."""
        async with asyncio.timeout(20):
            return Asked(*await self.opened.get())

    async def offer(self, address: str, network: Any = TCP, **more: Any) -> tuple[Any, socket.socket | None]:
        """Offers a stream; the proxy's answer: the Accept with a socket, or the Refusal."""
        token = os.urandom(16)
        answer = self._answers[token] = self._loop.create_future()
        target = tunnel_pb2.Target(network=network, address=address, service=more.pop("service", ""))
        offer = tunnel_pb2.Offer(token=token, peer="a", target=target, client="1.2.3.4:5", **more)
        self._offers[token] = offer
        self._tell(offer)
        async with asyncio.timeout(20):
            attach, sock = await answer
        if attach.WhichOneof("role") == "refuse":
            assert sock is None
            return attach.refuse.refusal, None
        assert sock is not None
        sock.setblocking(False)
        return attach.accept, sock

    def listens(self, connection: socket.socket) -> None:
        """It gets every offer that is not answered: the listener before may have died with it."""
        self.listeners += 1
        self._listener = connection
        self._tell(*self._offers.values())

    def take_over(self) -> None:
        """As if another proxy listened from now on."""
        assert self._listener is not None
        self._listener.send(tunnel_pb2.AttachResult(taken_over=True).SerializeToString())
        self._listener = None

    def _tell(self, *offers: tunnel_pb2.Offer) -> None:
        """As many at a time as have gathered; as soon as the proxy takes them."""
        if not self._untold:
            self._loop.call_soon(self._flush)
        self._untold.extend(offers)

    def _flush(self) -> None:
        while self._untold and self._listener is not None:
            try:
                self._listener.send(tunnel_pb2.AttachResult(offers=self._untold[:OFFERS]).SerializeToString())
            except BlockingIOError:
                self._loop.call_later(0.01, self._flush)
                return
            del self._untold[:OFFERS]
        self._untold.clear()

    async def GetStatus(self, request: Any, context: Any) -> tunnel_pb2.GetStatusResponse:
        return self.status

    def _accept(self) -> None:
        assert self._listening is not None
        connection, _ = self._listening.accept()
        connection.setblocking(False)
        self._connections.add(connection)
        if not self._deaf:
            self._loop.add_reader(connection, self._receive, connection)

    def _receive(self, connection: socket.socket) -> None:
        data, fds, _, _ = socket.recv_fds(connection, 65536, 4)
        if not data:
            self._loop.remove_reader(connection)
            self._connections.discard(connection)
            if self._listener is connection:
                self._listener = None
            connection.close()
            return
        assert len(fds) <= 1
        sock = socket.socket(fileno=fds[0]) if fds else None
        attach = tunnel_pb2.Attach.FromString(data)
        role = attach.WhichOneof("role")
        if role == "listen":
            self.listens(connection)
        elif role == "open":
            assert sock is not None
            sock.setblocking(False)
            self._settle(connection, attach, sock)
        else:
            token = attach.accept.token if role == "accept" else attach.refuse.token
            del self._offers[token]
            self._answers.pop(token).set_result((attach, sock))

    def _settle(self, connection: socket.socket, attach: tunnel_pb2.Attach, sock: socket.socket) -> None:
        """The exit's answer, which comes at once here."""
        opening, result = attach.open, tunnel_pb2.AttachResult(id=attach.id, refusal=self.refusal)
        relayed = opening.node in self.relayed
        result.path = tunnel_pb2.PATH_KIND_RELAYED if relayed else tunnel_pb2.PATH_KIND_DIRECT
        if self.refusal is None:
            self.opened.put_nowait((attach, sock, connection))
            if attach.id and not (opening.give_back or opening.welcome or self.mute):  # those are answered by the test
                connection.send(result.SerializeToString())
            return
        result.head = opening.head + (_read(sock, self.read_ahead) if self.read_ahead else b"")
        if opening.give_back:
            socket.send_fds(connection, [result.SerializeToString()], [sock.fileno()])
        else:
            assert opening.keep
            connection.send(result.SerializeToString())
        sock.close()


def _read(sock: socket.socket, size: int) -> bytes:
    """That many bytes of a client that has sent them already, or will in a moment."""
    sock.settimeout(20)
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data)) or b"?"
    sock.setblocking(False)
    return data


@dataclass
class Asked:
    """A client that the proxy handed over, and that it may want to hear of."""

    attach: tunnel_pb2.Attach
    sock: socket.socket
    connection: socket.socket

    @property
    def open(self) -> tunnel_pb2.Outbound:
        return self.attach.open

    def accept(self) -> socket.socket:
        """The exit has accepted: the client hears its welcome, and is the tunnel's."""
        self.sock.send(self.open.welcome)
        self._answer(tunnel_pb2.AttachResult(id=self.attach.id))
        return self.sock

    def answer(self) -> None:
        """The backend has sent the first datagram of a flow."""
        self._answer(tunnel_pb2.AttachResult(id=self.attach.id, answered=True))

    def end(self, reason: Any = None) -> None:
        """The stream, which was accepted, is over; `reason`: because the backend refused a flow."""
        self.sock.close()
        if self.open.watch:
            refusal = tunnel_pb2.Refusal(reason=reason) if reason is not None else None
            self._answer(tunnel_pb2.AttachResult(id=self.attach.id, ended=True, refusal=refusal))

    def refuse(self, reason: Any, message: str = "", head: bytes = b"") -> None:
        self.sock.close()
        refusal = tunnel_pb2.Refusal(reason=reason, message=message)
        self._answer(tunnel_pb2.AttachResult(id=self.attach.id, refusal=refusal, head=head))

    def _answer(self, result: tunnel_pb2.AttachResult) -> None:
        assert self.attach.id, "nobody wants to hear of this one"
        self.connection.send(result.SerializeToString())


class Discovery(discovery_pb2_grpc.DiscoveryServiceServicer):
    """Serves a set of services that tests change, and the names of some nodes. Revisions start anew with every start."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "discovery.sock"
        self._server: grpc.aio.Server | None = None
        self._services: dict[str, discovery_pb2.Service] = {}
        self._watchers: set[asyncio.Queue[discovery_pb2.WatchServicesResponse]] = set()
        self._objects: dict[str, discovery_pb2.GatewayObject] = {}
        self._gateways: set[asyncio.Queue[discovery_pb2.WatchGatewaysResponse]] = set()
        self._revision = 1
        self.watches = 0  # calls since the start
        self.nodes: list[str] = []  # set before it starts

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._revision, self.watches = 1, 0
        self._server = grpc.aio.server()
        discovery_pb2_grpc.add_DiscoveryServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self._path}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)

    def put(self, *services: discovery_pb2.Service) -> None:
        for one in services:
            self._services[f"{one.namespace}/{one.name}"] = one
            self._tell(discovery_pb2.WatchServicesResponse(added=one))

    def remove(self, key: str) -> None:
        del self._services[key]
        self._tell(discovery_pb2.WatchServicesResponse(removed=key))

    def _tell(self, response: discovery_pb2.WatchServicesResponse) -> None:
        self._revision += 1
        response.revision = self._revision
        for watcher in self._watchers:
            watcher.put_nowait(response)

    async def WatchPeers(
        self, request: discovery_pb2.WatchPeersRequest, context: Any
    ) -> AsyncIterator[discovery_pb2.WatchPeersResponse]:
        for name in self.nodes:
            record = discovery_pb2.PeerRecord(node_name=name)
            yield discovery_pb2.WatchPeersResponse(revision=1, added=discovery_pb2.Peer(record=record))
        yield discovery_pb2.WatchPeersResponse(revision=1, synced=True)
        await asyncio.Event().wait()

    def put_objects(self, *objects: discovery_pb2.GatewayObject) -> None:
        for one in objects:
            self._objects[f"{one.kind}/{one.namespace}/{one.name}"] = one
            self._tell_gateways(discovery_pb2.WatchGatewaysResponse(added=one))

    def remove_object(self, key: str) -> None:
        del self._objects[key]
        self._tell_gateways(discovery_pb2.WatchGatewaysResponse(removed=key))

    def _tell_gateways(self, response: discovery_pb2.WatchGatewaysResponse) -> None:
        self._revision += 1
        response.revision = self._revision
        for watcher in self._gateways:
            watcher.put_nowait(response)

    async def WatchGateways(
        self, request: discovery_pb2.WatchGatewaysRequest, context: Any
    ) -> AsyncIterator[discovery_pb2.WatchGatewaysResponse]:
        queue: asyncio.Queue[discovery_pb2.WatchGatewaysResponse] = asyncio.Queue()
        self._gateways.add(queue)
        try:
            if request.resume_revision == 0:
                for one in list(self._objects.values()):
                    yield discovery_pb2.WatchGatewaysResponse(revision=self._revision, added=one)
                yield discovery_pb2.WatchGatewaysResponse(revision=self._revision, synced=True)
            while True:
                yield await queue.get()
        finally:
            self._gateways.discard(queue)

    async def WatchServices(
        self, request: discovery_pb2.WatchServicesRequest, context: Any
    ) -> AsyncIterator[discovery_pb2.WatchServicesResponse]:
        self.watches += 1
        if request.resume_revision not in (0, self._revision):
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "compacted")
        queue: asyncio.Queue[discovery_pb2.WatchServicesResponse] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            if request.resume_revision == 0:
                for one in list(self._services.values()):
                    yield discovery_pb2.WatchServicesResponse(revision=self._revision, added=one)
                yield discovery_pb2.WatchServicesResponse(revision=self._revision, synced=True)
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)


def service(
    name: str,
    cluster_ip: str,
    *endpoints: tuple[str, str, int],
    port: int = 80,
    udp: bool = False,
    ready: bool = True,
    name_of_port: str = "x",
    policy: dict[str, Any] | None = None,
    annotations: dict[str, str] | None = None,
    connect: str = "",
) -> discovery_pb2.Service:
    """A service with one port; `endpoints` are (node, ip, port). Of its DestinationRule, `policy`: the loadBalancer,
    `connect`: the connectTimeout."""
    traffic = {"loadBalancer": policy} if policy else {}
    if connect:
        traffic["connectionPool"] = {"tcp": {"connectTimeout": connect}}
    protocol = discovery_pb2.PROTOCOL_UDP if udp else discovery_pb2.PROTOCOL_TCP
    return discovery_pb2.Service(
        namespace="default",
        name=name,
        cluster_ips=[cluster_ip] if cluster_ip else [],
        ports=[discovery_pb2.ServicePort(name=name_of_port, protocol=protocol, port=port)],
        endpoints=[
            discovery_pb2.Endpoint(
                addresses=[ip],
                ports=[discovery_pb2.EndpointPort(name=name_of_port, protocol=protocol, port=number)],
                node_name=node,
                ready=ready,
            )
            for node, ip, number in endpoints
        ],
        traffic_policy=json.dumps(traffic) if traffic else "",
        annotations=annotations,
    )
