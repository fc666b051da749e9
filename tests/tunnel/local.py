"""What stands beside a real tunnel process on its node: clients of the attach socket, and a proxy at the exit."""

from __future__ import annotations

import array
import asyncio
import contextlib
import itertools
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from lab.node import Node
from protos import tunnel_pb2 as pb
from protos import tunnel_pb2_grpc
from tests.patience import PATIENCE
from tests.patience import until as until

TCP, UDP = pb.NETWORK_TCP, pb.NETWORK_UDP


def rss(pid: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def descriptors(pid: int) -> int:
    """Open descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def tcp_pair(ip: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection on loopback: as if a client had been accepted. Not blocking."""
    with socket.create_server((ip, 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    client.setblocking(False)
    return client, accepted


def udp_pair(ip: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    """Two datagram sockets that are connected to each other. Not blocking."""
    one, other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for sock in (one, other):
        sock.bind((ip, 0))
        sock.setblocking(False)
    one.connect(other.getsockname())
    other.connect(one.getsockname())
    return one, other


def reset(sock: socket.socket) -> None:
    """Closes with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def send(sock: socket.socket, data: bytes) -> None:
    async with asyncio.timeout(PATIENCE):
        await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket, size: int) -> bytes:
    """So many bytes; fewer at the end of the stream."""
    data = bytearray()
    async with asyncio.timeout(PATIENCE):
        while len(data) < size and (chunk := await asyncio.get_running_loop().sock_recv(sock, size - len(data))):
            data += chunk
    return bytes(data)


async def receive_all(sock: socket.socket) -> bytes:
    """Until the end of the stream."""
    data = bytearray()
    async with asyncio.timeout(PATIENCE):
        while chunk := await asyncio.get_running_loop().sock_recv(sock, 1 << 20):
            data += chunk
    return bytes(data)


async def was_reset(sock: socket.socket) -> bool:
    """Reads to the end: True when that is a reset."""
    try:
        await receive_all(sock)
    except ConnectionResetError:
        return True
    return False


async def readable(sock: socket.socket, patience: float | None = PATIENCE) -> None:
    """Waits until there is something to read, or the end."""
    loop, news = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, news.set)
    try:
        async with asyncio.timeout(patience):
            await news.wait()
    finally:
        loop.remove_reader(sock)


class Attached:
    """A connection to a node's `tunnel.attach`."""

    _numbers = itertools.count(1)

    def __init__(self, node: Node) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(node.run_dir / "tunnel.attach"))
        self.sock.setblocking(False)

    def give(self, message: pb.Attach | bytes, *sockets: socket.socket | int) -> None:
        """One message with descriptors; our copies are closed."""
        data = message if isinstance(message, bytes) else message.SerializeToString()
        numbers = array.array("i", [one if isinstance(one, int) else one.fileno() for one in sockets])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if numbers else []
        self.sock.sendmsg([data], rights)
        for one in sockets:
            if not isinstance(one, int):
                one.close()

    def open(
        self, peer: str, address: str, *sockets: socket.socket | int, network: Any = TCP, want: bool = True, **more: Any
    ) -> int:
        """Asks for a stream; returns the number under which the result will come."""
        number = next(self._numbers) if want else 0
        target = pb.Target(network=network, address=address)
        attach = pb.Attach(id=number, open=pb.Outbound(node=peer, target=target, **more))
        self.give(attach, *sockets)
        return number

    async def result(self, number: int) -> pb.AttachResult:
        """The next result, which must be that of `number` and bring no socket."""
        result, given = await self.result_with(number)
        assert given is None
        return result

    async def result_with(self, number: int) -> tuple[pb.AttachResult, socket.socket | None]:
        """The next result, which must be that of `number`, and the socket that came with it."""
        await readable(self.sock)
        data, descriptors, _, _ = socket.recv_fds(self.sock, 65536, 4)
        assert data, "the tunnel closed tunnel.attach"
        result = pb.AttachResult.FromString(data)
        assert result.id == number
        assert len(descriptors) <= 1
        return result, socket.socket(fileno=descriptors[0]) if descriptors else None

    def silent(self) -> bool:
        """Whether there is no result to read now."""
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True

    async def ended(self) -> bool:
        """Waits until the tunnel closes the connection."""
        try:
            async with asyncio.timeout(PATIENCE):
                return not await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.sock.close()


@contextlib.asynccontextmanager
async def api(node: Node) -> AsyncIterator[Any]:
    """The tunnel's gRPC API."""
    async with grpc.aio.insecure_channel(f"unix:{node.run_dir}/tunnel.sock") as channel:
        yield tunnel_pb2_grpc.TunnelServiceStub(channel)


Decide = Callable[[pb.Offer], Awaitable[socket.socket | pb.Refusal | None]]


class Exit:
    """The proxy of the exit node: takes offers and dials what they name, unless `decide` says otherwise.

    `decide` gives a socket, a refusal, or None: no answer at all. `call`: it listens by gRPC, not on `tunnel.attach`.
    """

    def __init__(self, node: Node, decide: Decide | None = None, *, call: bool = False) -> None:
        self.node = node
        self.offers: list[pb.Offer] = []
        self.replaced = False
        """Another one listens."""
        self.decide = decide or dial
        self.service = ""
        """Of all that it accepts."""
        self._call = call
        self._attached = Attached(node)
        self._attached.sock.setblocking(True)  # under a flood of offers the answers wait
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Exit:
        self._listening = asyncio.create_task(self._listen_by_call() if self._call else self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in [self._listening, *self._tasks]:
            task.cancel()
        await asyncio.gather(self._listening, *self._tasks, return_exceptions=True)
        self._attached.close()

    async def _listen(self) -> None:
        self._attached.give(pb.Attach(listen=pb.Listen()))
        while not self.replaced:
            await readable(self._attached.sock, patience=None)
            if not (data := self._attached.sock.recv(65536)):
                return
            result = pb.AttachResult.FromString(data)
            self._take(result.offers)
            self.replaced = result.taken_over

    async def _listen_by_call(self) -> None:
        try:
            async with api(self.node) as stub:
                async for response in stub.Listen(pb.ListenRequest()):
                    self._take(response.offers)
        except grpc.aio.AioRpcError as error:
            self.replaced = error.code() is grpc.StatusCode.ABORTED

    def _take(self, offers: Iterable[pb.Offer]) -> None:
        for offer in offers:
            self.offers.append(offer)
            task = asyncio.create_task(self._answer(offer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, offer: pb.Offer) -> None:
        decision = await self.decide(offer)
        if isinstance(decision, pb.Refusal):
            self._attached.give(pb.Attach(refuse=pb.Refuse(token=offer.token, refusal=decision)))
        elif decision is not None:
            accept = pb.Accept(token=offer.token, service=self.service)
            self._attached.give(pb.Attach(accept=accept), decision)


async def dial(offer: pb.Offer) -> socket.socket | pb.Refusal:
    """Connects to the target."""
    host, _, port = offer.target.address.rpartition(":")
    kind = socket.SOCK_DGRAM if offer.target.network == UDP else socket.SOCK_STREAM
    sock = socket.socket(socket.AF_INET, kind)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    except (OSError, ValueError) as error:
        sock.close()
        return pb.Refusal(reason=pb.REFUSAL_REASON_CONNECTION_REFUSED, message=str(error))
    return sock


class Backend:
    """A TCP server at the exit whose connections the test holds in its hands."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._server.setblocking(False)
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"

    async def accept(self) -> socket.socket:
        async with asyncio.timeout(PATIENCE):
            sock, _ = await asyncio.get_running_loop().sock_accept(self._server)
        return sock

    def close(self) -> None:
        self._server.close()
