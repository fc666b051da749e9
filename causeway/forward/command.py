"""The command: what it is told, what it says, and when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from causeway import ask, options, place
from causeway.errors import CommandError, printable
from causeway.forward import listener, target
from causeway.forward.control import Control, Outcome
from causeway.forward.listener import Way
from causeway.forward.target import NodeTarget, ServiceTarget, Turns

if TYPE_CHECKING:
    from protos.discovery_pb2 import Service, WatchServicesResponse

_SNAPSHOT = 5.0  # seconds for discovery to say which services there are


@click.command()
@click.argument("local", metavar="LOCAL")
@click.argument("to", metavar="SERVICE:PORT|NODE:HOST:PORT")
@click.option("-u", "--udp", is_flag=True, help="UDP instead of TCP.")
@options.timeout("-w")
@options.output
@options.run_dir
def forward(
    local: str, to: str, udp: bool, timeout: float, output: str, config: Path | None, run_dir: Path | None
) -> None:
    """Listen on LOCAL, and lead whoever connects to a service, or to HOST:PORT as seen from NODE.

    LOCAL is [IP:]PORT, on 127.0.0.1 unless an IP is given; port 0 takes a free one. A service is named as NAME (in
    the namespace default), NAME.NAMESPACE or NAME.NAMESPACE.svc.cluster.local, its port by number or name; clients
    take turns at its endpoints, and one that does not answer is passed over. NODE's proxy decides whether HOST:PORT
    may be dialled: endpoints of known services, and what its modules.edgeProxy.allowedTargets lists.

    It runs until it is interrupted. TCP connections to other nodes are carried by the node, not by this command: those
    that stand then live on. Connections to an endpoint on this machine's own node, and flows of UDP, end with it.

    \b
    Examples:
      causeway forward 8080 web.default:80               http://127.0.0.1:8080/ is the service
      causeway forward 2222 edge-b:127.0.0.1:22          ssh -p 2222 127.0.0.1 is edge-b
      causeway forward -u 5353 edge-b:10.0.0.53:53       the DNS server of edge-b's LAN
      causeway forward 0.0.0.0:8080 web.shop:http        for others, too, who reach this machine

    \b
    It says when it listens, and each client that is refused, with the reason. With -o json one object a line:
      {"event": "listening", "address", "network", "target"}
      {"event": "refused", "client", "target", "reason", "message"}
    Reasons: denied, unreachable, connection-refused, unknown-node, no-path, limit, no-listener, identity, no-endpoint,
    no-tunnel.
    Exit codes: 0 interrupted, 1 there is no such service or no running node, 2 wrong usage.
    """
    address, port = target.parse_local(local)
    where = target.parse(to)
    directory = place.run_directory(config, run_dir)
    asyncio.run(_forward(directory, address, port, where, udp, timeout, _Speaker(where, output == "json")))


class _Speaker:
    """Says what happens."""

    def __init__(self, where: ServiceTarget | NodeTarget, as_json: bool) -> None:
        self._target = str(where)
        self._json = as_json

    def listening(self, address: str, network: str) -> None:
        event = {"event": "listening", "address": address, "network": network, "target": self._target}
        self._say(event, f"listening on {address} ({network}) for {self._target}")

    def refused(self, client: str, outcome: Outcome) -> None:
        event = {"event": "refused", "client": client, "target": self._target}
        event |= {"reason": outcome.reason, "message": outcome.message}
        self._say(event, f"refused {client} ({outcome.reason}): {outcome.message}")

    def _say(self, event: dict[str, str], line: str) -> None:
        click.echo(json.dumps(event) if self._json else printable(line))


async def _forward(
    run_dir: Path,
    ip: str,
    port: int,
    where: ServiceTarget | NodeTarget,
    udp: bool,
    timeout: float,
    speaker: _Speaker,
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    node = await _own_name(run_dir)
    turns = Turns()
    async with contextlib.AsyncExitStack() as stack:
        if isinstance(where, NodeTarget):
            turns.replace([where.backend])
        else:
            endpoints = _Endpoints(where, turns, udp=udp)
            following = asyncio.create_task(endpoints.follow(run_dir))
            stack.push_async_callback(_end, following)
            await endpoints.known(run_dir)
        control = Control(run_dir / "tunnel.attach", timeout)
        stack.callback(control.close)
        listening = listener.listen(ip, port, Way(node, control, turns, speaker.refused), udp=udp)
        stack.push_async_callback(listening.close)
        speaker.listening(listening.address, "udp" if udp else "tcp")
        await stopping.wait()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _own_name(run_dir: Path) -> str:
    import grpc

    from protos import tunnel_pb2
    from services.runtime.dial import DEADLINE

    async with ask.tunnel(run_dir) as tunnel:
        try:
            return (await tunnel.GetStatus(tunnel_pb2.GetStatusRequest(), timeout=DEADLINE)).node_name
        except grpc.aio.AioRpcError:
            raise CommandError(place.not_running("tunnel", run_dir / "tunnel.sock")) from None


class _Endpoints:
    """Keeps `turns` equal to the endpoints of a service."""

    def __init__(self, where: ServiceTarget, turns: Turns, *, udp: bool) -> None:
        self._where = where
        self._turns = turns
        self._udp = udp
        self._synced = asyncio.Event()
        self._names: set[str] = set()
        self._service: Service | None = None
        self._seen = False  # since the last snapshot began

    async def known(self, run_dir: Path) -> None:
        """Returns when the service is known. Raises CommandError: there is none such, or it has no such port."""
        try:
            async with asyncio.timeout(_SNAPSHOT):
                await self._synced.wait()
        except TimeoutError:
            raise CommandError(place.not_running("discovery", run_dir / "discovery.sock")) from None
        if self._service is None:
            near = difflib.get_close_matches(self._where.key, self._names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"{len(self._names)} services are known"
            raise CommandError(f"there is no service {self._where.key}: {hint}")
        target.backends(self._service, self._where.port, udp=self._udp)

    async def follow(self, run_dir: Path) -> None:
        """For ever, over restarts of discovery."""
        from protos import discovery_pb2, discovery_pb2_grpc
        from services.runtime import dial

        async with dial.local_channel(run_dir, "discovery") as channel:
            stub = discovery_pb2_grpc.DiscoveryServiceStub(channel)
            await dial.follow(
                lambda revision: aiter(
                    stub.WatchServices(discovery_pb2.WatchServicesRequest(resume_revision=revision))
                ),
                self._apply,
                name="services",
                on_relist=self._relist,
            )

    def _relist(self) -> None:
        self._seen = False

    def _apply(self, response: WatchServicesResponse) -> None:
        match response.WhichOneof("event"):
            case "added":
                key = f"{response.added.namespace}/{response.added.name}"
                self._names.add(key)
                if key == self._where.key:
                    self._service, self._seen = response.added, True
                    self._use(response.added)
            case "removed":
                self._names.discard(response.removed)
                if response.removed == self._where.key:
                    self._turns.replace([])
            case "synced":
                self._synced.set()
                if not self._seen:  # it went while discovery was away
                    self._turns.replace([])

    def _use(self, service: Service) -> None:
        try:
            self._turns.replace(target.backends(service, self._where.port, udp=self._udp))
        except CommandError:  # the port went away: nobody is left. At the start `known` says so.
            self._turns.replace([])
