"""A real relay process, and clients that speak its wire protocol from outside its code."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from lab.child import Child
from protos import relay_pb2 as pb
from protos import relay_pb2_grpc
from services.relay import config
from services.relay.core.limits import Limits
from services.runtime import config as configuration
from services.runtime.identity import Identity
from services.runtime.tls import FramedTls
from tests import loopback
from tests.patience import PATIENCE, until

PSK = "correct horse battery staple, and then some"


def limits(**changes: Any) -> Limits:
    """Limits of a relay with the default configuration, apart from `changes`."""
    configured = config.limits(configuration.Config(node_name="r"), descriptors=1 << 20)
    return dataclasses.replace(configured, **changes)


def identity(folder: Path, name: str, *, cluster: str = "test", psk: str = PSK) -> Identity:
    """A node's identity, made in `folder`."""
    home = folder / f"node-{name}-{cluster}-{abs(hash(psk)) % 10000}"
    home.mkdir(exist_ok=True)
    (home / "psk").write_text(psk)
    file = home / "config.yaml"
    file.write_text(f"{{nodeName: {name}, cluster: {cluster}, runDir: {tempfile.gettempdir()}/none}}")
    return Identity.load(configuration.load(file))


class RelayProcess:
    """`python -m services.relay` on an address of its own, without discovery."""

    def __init__(self, folder: Path, *, name: str = "r1", relay: str = "", named: bool = True, extra: str = "") -> None:
        self.name = name
        self.ip = loopback.address()
        self.folder = folder
        # Unix socket names are short; pytest's folders are not.
        self._run = tempfile.TemporaryDirectory(prefix="cw")
        (folder / "psk").write_text(PSK)
        nodes = f"[{{nodeName: {name}, advertiseAddress: [{self.ip}]}}, {{nodeName: r9}}]" if named else "[]"
        self.config = folder / f"{name}.yaml"
        self.config.write_text(
            f"nodeName: {name}\ncluster: test\nstateDir: {folder}/state-{name}\nrunDir: {self._run.name}\n"
            f"listenAddress: {self.ip}\n{extra}\nmodules:\n  edgeTunnel: {{psk: {{path: {folder}/psk}}, relayNodes: {nodes}}}\n"
            f"  edgeRelay: {{{relay}}}\n"
        )
        self.log = folder / f"{name}.log"
        self._process: Child | None = None

    def spawn(self, **environment: str) -> None:
        self._process = Child.service("relay", self.config, output=self.log, environment=environment)

    @property
    def run_dir(self) -> Path:
        return Path(self._run.name)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        assert self._process is not None
        return self._process.code

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.signal(number)

    async def wait(self) -> int:
        """Exit code, once it has ended."""
        await until(lambda: self.exit_code is not None, "the relay ends")
        assert self.exit_code is not None
        return self.exit_code

    def output(self) -> str:
        return self.log.read_text()

    def rss(self) -> int:
        """Resident bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    @contextlib.asynccontextmanager
    async def api(self) -> AsyncIterator[relay_pb2_grpc.RelayServiceAsyncStub]:
        """Its local gRPC API."""
        async with grpc.aio.insecure_channel(f"unix:{self._run.name}/relay.sock") as channel:
            yield relay_pb2_grpc.RelayServiceStub(channel)

    async def status(self) -> pb.GetStatusResponse:
        async with self.api() as api:
            return await api.GetStatus(pb.GetStatusRequest(), wait_for_ready=True, timeout=PATIENCE)

    async def until(self, condition: Callable[[pb.GetStatusResponse], object], what: str) -> pb.GetStatusResponse:
        """Its status, once that fulfils the condition."""
        last = pb.GetStatusResponse()

        async def fulfilled() -> bool:
            nonlocal last
            last = await self.status()
            return bool(condition(last))

        await until(fulfilled, what)
        return last

    def end(self) -> None:
        if self._process is not None and self._process.code is None:
            self._process.kill()
        self._run.cleanup()


@contextlib.asynccontextmanager
async def relay_process(
    folder: Path, *, relay: str = "", named: bool = True, extra: str = ""
) -> AsyncIterator[RelayProcess]:
    """A relay that is up."""
    process = RelayProcess(folder, relay=relay, named=named, extra=extra)
    try:
        process.spawn()
        try:
            await process.status()
        except grpc.aio.AioRpcError as error:
            raise AssertionError(f"the relay did not come up: {error.details()}\n{process.output()}") from None
        yield process
    finally:
        process.end()


class Client:
    """One control connection, spoken by hand."""

    def __init__(self, tls: FramedTls, sock: socket.socket, ip: str) -> None:
        self.tls = tls
        self.ip = ip
        self._address = "{}:{}".format(*sock.getsockname())
        self._last = 0

    @classmethod
    async def dial(cls, ip: str, identity: Identity, *, source: str = "") -> Client:
        """TLS done, nobody judged, nothing said."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        if source:
            sock.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(sock, (ip, 20007))
        return cls(await FramedTls.start(sock, identity, server=False, timeout=PATIENCE), sock, ip)

    @classmethod
    async def greet(cls, ip: str, identity: Identity, *, source: str = "") -> Client:
        """Greeted and welcome."""
        client = await cls.dial(ip, identity, source=source)
        client.tls.judge("r1")
        answer = await client.ask(hello=pb.Hello(version=1, cluster="test", node_name=identity.node_name))
        assert answer.WhichOneof("body") == "welcome", answer
        assert answer.welcome.node_name == "r1"
        return client

    async def say(self, **body: object) -> int:
        self._last += 1
        await self.tls.send(pb.ControlMessage(id=self._last, **body).SerializeToString())  # type: ignore[arg-type]
        return self._last

    async def hear(self) -> pb.ControlMessage:
        async with asyncio.timeout(PATIENCE):
            return pb.ControlMessage.FromString(await self.tls.receive())

    async def ask(self, **body: object) -> pb.ControlMessage:
        """Say, and hear the answer with the same id."""
        id = await self.say(**body)  # noqa: A001
        answer = await self.hear()
        assert answer.id == id, answer
        return answer

    async def reserve(self) -> pb.Reserved:
        answer = await self.ask(reserve=pb.Reserve())
        assert answer.WhichOneof("body") == "reserved", answer
        return answer.reserved

    async def ended(self) -> bool:
        """Hear until the relay closes."""
        try:
            while True:
                await self.hear()
        except TimeoutError:
            return False
        except (EOFError, OSError):
            return True

    def close(self) -> None:
        self.tls.abort()

    @property
    def address(self) -> str:
        """Own "ip:port"."""
        return self._address


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def leg(ip: str, token: bytes) -> Stream:
    """A leg that has shown its token."""
    reader, writer = await asyncio.open_connection(ip, 20007, limit=1 << 20)
    writer.write(b"CWL1" + token)
    return reader, writer


async def circuit(caller: Client, callee: Client, name: str) -> tuple[Stream, Stream]:
    """Both legs of a circuit to `name`, ready."""
    answer = await caller.ask(connect=pb.Connect(peer=name))
    assert answer.WhichOneof("body") == "circuit", answer
    incoming = (await callee.hear()).incoming
    one = await leg(caller.ip, answer.circuit.token)
    other = await leg(callee.ip, incoming.token)
    async with asyncio.timeout(PATIENCE):
        assert await one[0].readexactly(1) == b"\x01"
        assert await other[0].readexactly(1) == b"\x01"
    return one, other
