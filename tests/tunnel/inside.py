"""Tunnels and relays inside the test's process: real sockets, TLS and circuits on loopback, no process to wait for.

Only discovery is missing: a `Directory` knows at once what any of the tunnels reports.
"""

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from lab.place import Loopback
from protos import relay_pb2
from services.relay.core.limits import Limits
from services.relay.core.role import Role
from services.relay.relay import Relay
from services.runtime import config as configuration
from services.runtime.identity import Identity
from services.runtime.process import Service
from services.runtime.serve import LocalServer
from services.runtime.tls import FramedTls, TlsError
from services.tunnel import servicer
from services.tunnel.config import Settings
from services.tunnel.driver import Tunnel
from services.tunnel.peers import PeerAddress, PeerInfo, ReservationReport
from tests.relay.harness import limits as default_limits
from tests.tunnel.conftest import PSK
from tests.tunnel.local import until

RELAY_PORT = 20007
CLOSED_PORT = 9
log = logging.getLogger("causeway.test")


class Directory:
    """Who is out there. What a node reports all others know at once."""

    def __init__(self) -> None:
        self.records: dict[str, PeerInfo] = {}
        self.views: list[View] = []

    def publish(self, info: PeerInfo) -> None:
        """A record is new, or has changed."""
        self.records[info.name] = info
        for view in self.views:
            view.tell(info)

    def withdraw(self, name: str) -> None:
        """A record is gone."""
        del self.records[name]
        for view in self.views:
            view.on_removed(name)


class View:
    """The directory as one node sees it: the discovery of its tunnel."""

    def __init__(self, directory: Directory, name: str) -> None:
        self.directory = directory
        self.name = name
        self.out_of_reach: set[str] = set()
        """Relays that this node cannot connect to."""
        self.observed: list[tuple[str, int]] = []
        """As reported last."""
        self.on_peer: Callable[[PeerInfo], None] = lambda _: None
        self.on_removed: Callable[[str], None] = lambda _: None
        directory.views.append(self)

    def tell(self, info: PeerInfo) -> None:
        self.on_peer(self._seen(info))

    def _seen(self, info: PeerInfo) -> PeerInfo:
        if info.name not in self.out_of_reach:
            return info
        return replace(info, relay_addresses=tuple((ip, CLOSED_PORT) for ip, _ in info.relay_addresses))

    async def follow(self, on_peer, on_removed, on_synced) -> None:
        self.on_peer, self.on_removed = on_peer, on_removed
        for info in self.directory.records.values():
            self.tell(info)
        on_synced()
        await asyncio.Event().wait()

    async def resolve(self, name: str, *, fresh: bool, traceparent: str = "") -> PeerInfo | None:
        info = self.directory.records.get(name)
        return None if info is None else self._seen(info)

    async def report(
        self,
        port: int,
        reservations: list[ReservationReport],
        observed: list[tuple[str, int]],
        mapped: tuple[str, int] | None = None,
    ) -> bool:
        self.observed = observed
        was = self.directory.records.get(self.name, PeerInfo(self.name))
        names, rtts = tuple(it.relay for it in reservations), tuple(it.rtt for it in reservations)
        info = replace(was, reservations=names, rtts=rtts, revision=was.revision + 1)
        self.directory.publish(info)
        return True

    async def close(self) -> None:
        pass


@dataclass
class Inner:
    """A tunnel that runs here. `Attached` and `Exit` take it for a node."""

    name: str
    address: str
    run_dir: Path
    tunnel: Tunnel
    view: View

    def reserved(self) -> set[str]:
        """Relays on which it holds a reservation now."""
        return {it.relay for it in self.tunnel.relays.reservations()}

    def relays_in_use(self, peer: str) -> list[str]:
        """Of the active link; "direct" for one without a relay, nothing where there is none."""
        pairing = self.tunnel.sessions.preferred.get(peer)
        active = pairing.session.active if pairing is not None else None
        return [] if active is None else [active.relay or "direct"]


class Inside:
    """Makes them and ends them; `inside` gives one."""

    def __init__(self, folder: Path, stack: contextlib.AsyncExitStack) -> None:
        self.directory = Directory()
        self.ground = Loopback(random.Random())
        self._folder = folder
        self._stack = stack

    def config(self, name: str, address: str, **tunnel: object) -> configuration.Config:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        (folder / "psk").write_text(PSK)
        document = {
            "nodeName": name,
            "cluster": "test",
            "stateDir": "state",
            "runDir": "run",
            "listenAddress": address,
            "modules": {"edgeTunnel": {"psk": {"path": "psk"}, **tunnel}},
        }
        (folder / "causeway.yaml").write_text(yaml.safe_dump(document))
        return configuration.load(folder / "causeway.yaml")

    async def tunnel(self, name: str, *, listens: bool = False, out_of_reach: set[str] = frozenset()) -> Inner:
        """A tunnel; one that listens can be dialled by all."""
        address = self.ground.address()
        config = self.config(name, address, **({} if listens else {"listenPort": 0}))
        config.run_dir.mkdir()
        service = Service("tunnel", config, Identity.load(config), log, asyncio.Event())
        tunnel = Tunnel(Settings.of(config), service.identity)
        await tunnel.discovery.close()
        view = View(self.directory, name)
        view.out_of_reach = set(out_of_reach)
        tunnel.discovery = tunnel.sessions.discovery = view
        self.directory.publish(PeerInfo(name, (PeerAddress(address, 20006),) if listens else ()))
        server = LocalServer(service)
        server.add(servicer.add_to_server, servicer.TunnelServicer(tunnel, tunnel.streams.offers), servicer.FULL_NAME)
        await server.start()
        running = asyncio.create_task(tunnel.run(service.stopping))
        await until(lambda: (config.run_dir / "tunnel.attach").exists(), f"{name} runs")

        async def stop() -> None:
            service.stopping.set()
            await running
            await tunnel.close()
            await server.stop()

        self._stack.push_async_callback(stop)
        return Inner(name, address, config.run_dir, tunnel, view)

    async def relay(self, name: str, limits: Limits | None = None, *, address: str = "", rank: int = 1) -> Relay:
        """A relay that everybody knows, at an address of its own or where a former one was."""
        address = address or self.ground.address()
        relay = Relay(
            Identity.load(self.config(name, address)),
            limits or default_limits(),
            Role(True, True, "for the test", True, "Configured"),
            alternatives=(),
            changed=lambda: None,
            log=log,
        )
        relay.open(address, RELAY_PORT)
        self._stack.push_async_callback(relay.close)
        self.announce(name, address, rank)
        return relay

    def announce(self, name: str, address: str, rank: int = 1) -> None:
        """Tells everybody of a relay."""
        self.directory.publish(PeerInfo(name, relay_addresses=((address, RELAY_PORT),), relay_rank=rank))

    async def puppet(self, name: str, answer: "Answer") -> "Puppet":
        """A relay that says what the test wants, known to everybody."""
        address = self.ground.address()
        puppet = Puppet(Identity.load(self.config(name, address)), address, answer)
        self._stack.push_async_callback(puppet.close)
        self.announce(name, address)
        return puppet


@contextlib.asynccontextmanager
async def inside(folder: Path) -> AsyncIterator[Inside]:
    async with contextlib.AsyncExitStack() as stack:
        yield Inside(folder, stack)


Answer = Callable[["Puppet", relay_pb2.ControlMessage], relay_pb2.ControlMessage | None]
"""What a puppet answers to a message; None: nothing."""


class Puppet:
    """The control port of a relay in the test's hands."""

    def __init__(self, identity: Identity, address: str, answer: Answer) -> None:
        self.name, self.answer = identity.node_name, answer
        self.identity = identity
        self.greeted = 0
        """Connections that said Hello."""
        self.open: set[FramedTls] = set()
        self._listening = socket.create_server((address, RELAY_PORT))
        self._listening.setblocking(False)
        self._tasks = {asyncio.create_task(self._accept())}

    async def _accept(self) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listening)
            self._tasks.add(asyncio.create_task(self._serve(sock)))

    async def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError, TimeoutError, TlsError):
            tls = await FramedTls.start(sock, self.identity, server=True)
            self.open.add(tls)
            try:
                while True:
                    message = relay_pb2.ControlMessage.FromString(await tls.receive())
                    self.greeted += message.WhichOneof("body") == "hello"
                    if (answer := self.answer(self, message)) is not None:
                        answer.id = message.id
                        await tls.send(answer.SerializeToString())
            finally:
                self.open.discard(tls)
                tls.abort()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listening.close()


def honest(puppet: Puppet, message: relay_pb2.ControlMessage, observed: str = "") -> relay_pb2.ControlMessage | None:
    """What a relay answers on its control connection when all is well."""
    match message.WhichOneof("body"):
        case "hello":
            welcome = relay_pb2.Welcome(version=1, node_name=puppet.name, observed=observed)
            return relay_pb2.ControlMessage(welcome=welcome)
        case "reserve":
            return relay_pb2.ControlMessage(reserved=relay_pb2.Reserved(ttl={"seconds": 3600}))
        case "heartbeat":
            return relay_pb2.ControlMessage(heartbeat=relay_pb2.Heartbeat())
    return None


class Gate:
    """A way to a TCP port that can be shut: connections stay, nothing passes any more, nobody is told."""

    def __init__(self, address: str, to: tuple[str, int], port: int = 0) -> None:
        self.address = address
        self.port = port
        self._to = to
        self._passing = asyncio.Event()
        self._passing.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Gate":
        self._server = await asyncio.start_server(self._pass, self.address, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def shut(self) -> None:
        self._passing.clear()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far_reader, far_writer = await asyncio.open_connection(*self._to)
        try:
            await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            far_writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._passing.wait()
            writer.write(data)
            await writer.drain()
        writer.write_eof()
