"""The tunnel in motion: the only owner of its tasks, timers and clock.

The data's way through the code: proxy → `attach` → `opener` → `streams` → a `Pairing`'s stream → records →
`linkio` → … → the other node's `linkio` → stream → `offers` → its proxy → `attach` → backend.
"""

import asyncio
import collections
import contextlib
import logging
import math
import random
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from services.runtime.config import Config
from services.runtime.identity import Identity
from services.runtime.process import Service
from services.runtime.serve import LocalServer
from services.tunnel import metrics, native, servicer, status
from services.tunnel.attach import AttachSocket, Connection
from services.tunnel.candidates import find
from services.tunnel.config import Settings
from services.tunnel.core.lifetime import Lifetimes
from services.tunnel.core.link import PATH_NAMES
from services.tunnel.engine import Engine
from services.tunnel.errors import NO_PATH, UNKNOWN_NODE, Refused
from services.tunnel.explain import explain
from services.tunnel.listening import Listening
from services.tunnel.meeting import Meeting
from services.tunnel.netcheck import NetCheck
from services.tunnel.netreport import Report
from services.tunnel.netwatch import NetWatch
from services.tunnel.opener import Opener
from services.tunnel.peers import Discovery, PeerInfo
from services.tunnel.portmap.mapper import Mapper
from services.tunnel.probing import Probing
from services.tunnel.relays import RelayPool
from services.tunnel.rotation import Rotation
from services.tunnel.sessions import Sessions
from services.tunnel.streams import Streams

log = logging.getLogger("causeway.tunnel")

TICK = 0.01
"""Seconds between looks at sessions that wait for something."""
TICK_OPENINGS = 0.1
"""Seconds between looks at streams that nobody has accepted."""
TICK_IDLE = 1.0
SWEEP = 5.0
CLOCK_JUMP = 60.0
"""A tick that comes so many seconds late means that the machine slept: every link is asked at once, and all
backoffs are forgotten (Tailscale takes 10 min of wall clock; a suspend shorter than ours kills no link)."""
REPORT_DELAY = 0.05
"""Seconds that changes of reservations gather before they are published."""


class Tunnel:
    """Puts the parts together and keeps them going."""

    def __init__(self, settings: Settings, identity: Identity) -> None:
        self.settings = settings
        self.engine = Engine()
        self._changed = asyncio.Event()
        self.discovery = Discovery(settings.run_dir)
        self.lifetimes = Lifetimes(random.Random())
        self.relays = RelayPool(
            settings, identity, self.lifetimes, self._on_circuit, self._reservations_changed, self._relay_drained
        )
        self.streams = Streams(settings.node_name)
        self.sessions = Sessions(
            settings, identity, self.engine, self.discovery, self.relays, self.streams, self.lifetimes, self._wake
        )
        self.rotation = Rotation(self.sessions, self.relays, self.lifetimes)
        self.probing = Probing(settings, identity, self.relays)
        self.meeting = Meeting(self.sessions, self.relays)
        self.netwatch = NetWatch(self._far_ends, self._moved)
        self.portmap = Mapper(settings.state_dir, settings.listen_address, settings.listen_port, self._changed.set)
        self.netcheck = NetCheck(
            settings, identity, self.discovery, self.relays, self.sessions.arrivals, lambda: self.portmap.mapping
        )
        self.opener = Opener(self.sessions, self.streams)
        self.attach = AttachSocket(
            self.engine,
            settings.run_dir / "tunnel.attach",
            self.opener.open,
            self.streams.offers.answer,
            self._on_listen,
        )
        self.udp_idle = settings.udp_idle
        self._awake = asyncio.Event()
        self._asleep = 0.0

    # ---------------------------------------------------------------- life

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping`."""
        if self.settings.listen_port:
            self.sessions.door.open(self.settings.listen_address, self.settings.listen_port)
        self.attach.open()
        async with asyncio.TaskGroup() as group:
            works = [self._follow, self._tick, self._sweep, self._report, self.netwatch.run]
            if self.settings.listen_port and self.settings.port_mapping:
                works.append(self.portmap.run)
            tasks = [group.create_task(_persist(work)) for work in works]
            await stopping.wait()
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """Ends everything."""
        await self.rotation.close()
        await self.meeting.close()
        await self.probing.close()
        self.attach.close()
        await self.opener.close()
        await self.netcheck.close()
        await self.sessions.close()
        await self.relays.close()
        await self.discovery.close()
        self.engine.close()

    def _on_listen(self, connection: Connection) -> None:
        offers = self.streams.offers
        connection.listener = connection.listener or Listening(self.engine, offers, connection)
        offers.listen(connection.listener)

    async def _tick(self) -> None:
        """Every 10 ms while a session waits for something, else every second."""
        last = all_ticked = looked = time.monotonic()
        while True:
            busy = [pairing for pairing in self.sessions.pairings.values() if pairing.session.busy]
            self._awake.clear()
            due = math.inf
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if busy else TICK_IDLE):
                    if not busy:
                        await self._awake.wait()
                    due = time.monotonic() + TICK
                    await asyncio.sleep(TICK)
            now = time.monotonic()
            self.sessions.absences.note(due, now)
            # CLOCK_MONOTONIC stands still in a suspend, CLOCK_BOOTTIME does not.
            if now - last > CLOCK_JUMP or self._slept():
                self.sessions.revalidate("clock")
                self.portmap.network_changed()
            last = now
            self.engine.now = now
            if not busy or now - all_ticked >= TICK_IDLE:
                busy, all_ticked = list(self.sessions.pairings.values()), now
            if now - looked >= TICK_OPENINGS:
                self.streams.expire_openings(now)
                looked = now
            for pairing in busy:
                try:
                    pairing.tick(now)
                except Exception:  # a fault of ours in one session: the others need their ticks
                    log.exception("tick failed", extra={"peer": pairing.peer})
                    pairing.broke()

    def _slept(self) -> bool:
        asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        slept = asleep - self._asleep > 1.0 if self._asleep else False
        self._asleep = asleep
        return slept

    def _moved(self, gone: frozenset[str]) -> None:
        self.sessions.moved(gone)
        self.portmap.network_changed()

    def _far_ends(self) -> set[str]:
        return self.sessions.far_ends() | self.relays.far_ends()

    def _wake(self) -> None:
        if not self._awake.is_set():
            self._awake.set()

    async def _sweep(self) -> None:
        """What needs no haste: offers and openings that nobody answered, silent flows, duplicate sessions."""
        rounds = 0
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            self.streams.expire(now)
            self.rotation.tick(now)
            self.probing.tick(now)
            self.meeting.tick(now)
            for pairing in list(self.sessions.pairings.values()):
                pairing.expire_flows(now - self.udp_idle)
            rounds += 1
            if rounds % int(SWEEP):
                continue
            self.sessions.sweep(now)
            self.streams.watch()
            self._count()

    def _count(self) -> None:
        pairings = self.sessions.pairings.values()
        metrics.SESSIONS.set(len(pairings))
        metrics.STREAMS.set(sum(len(pairing.session.streams) for pairing in pairings))
        kinds = collections.Counter(link.kind for pairing in pairings for link in pairing.session.links)
        for kind, name in PATH_NAMES.items():
            metrics.LINKS.labels(name).set(kinds[kind])
        metrics.HALF_OPEN.set(self.sessions.door.half_open)
        metrics.RESERVATIONS.set(len(self.relays.reservations()))
        self.streams.count()
        for pairing in pairings:
            pairing.count()

    # ---------------------------------------------------------------- discovery and relays

    async def _follow(self) -> None:
        await self.discovery.follow(self._on_peer, self.relays.remove, self._changed.set)

    def _on_peer(self, info: PeerInfo) -> None:
        self.relays.update(info)
        keeper = self.sessions.keeper_of(info.name)
        if keeper is not None:
            keeper.learn(info)

    async def _on_circuit(self, sock: socket.socket, relay: str) -> None:
        self.sessions.door.admit(sock, relay)

    def _reservations_changed(self) -> None:
        self._changed.set()
        for reservation in self.relays.reservations():
            self.sessions.reserved(reservation.relay)

    def _relay_drained(self, relay: str) -> None:
        self.sessions.drain(relay)
        self._changed.set()

    async def _report(self) -> None:
        """Keeps this node's record true: at once after a change, again when discovery came back."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(REPORT_DELAY)
            self._changed.clear()
            port = self.settings.listen_port
            reservations, observed = self.relays.reservations(), self.relays.observed()
            if not await self.discovery.report(port, reservations, observed, self.portmap.mapping.external):
                await asyncio.sleep(1.0)
                self._changed.set()
            else:
                self.relays.published(reservations)

    # ---------------------------------------------------------------- asked over gRPC

    async def ping(self, node: str, count: int, timeout: float) -> tuple[list[float], status.LinkStatus]:
        """Round trips inside the session, seconds."""
        pairing = await self.sessions.session_with(node, timeout, patient=True)  # until it has started, say
        rtts: list[float] = []
        try:
            async with asyncio.timeout(timeout + count):
                for number in range(count):
                    rtts.append(await pairing.round_trip())
                    if number + 1 < count:
                        await asyncio.sleep(0.2)
        except TimeoutError:
            if not rtts:
                raise Refused(NO_PATH, f"{node} does not answer: {self.sessions.failure(pairing)}") from None
        active = pairing.session.active
        if active is None:
            raise Refused(NO_PATH, f"the path to {node} was lost")
        return rtts, status.of_link(active, active)

    async def explain(self, node: str) -> status.PeerStatus:
        """Every way to a node. Refused when nobody knows it."""
        info = await self.sessions.known(node)
        pairing = self.sessions.preferred.get(node)
        if info is None and pairing is None:
            raise Refused(UNKNOWN_NODE, f"nobody knows a node {node}")
        known = find(self.relays, node, info, self.sessions.use(pairing))
        decision = self.meeting.why(pairing) if pairing is not None else None
        keeper, port = self.sessions.keeper_of(node), self.settings.listen_port
        return explain(pairing, keeper, known, decision, port, time.monotonic())

    async def check_network(self) -> Report:
        """What lies between this node and the others."""
        return await self.netcheck.run()

    def reconfigure(self, config: Config) -> None:
        """How long a session without a path is held is judged anew with every look at it; nothing else changes."""
        hold = config.modules.edge_tunnel.session_hold_seconds
        self.sessions.settings = replace(self.sessions.settings, session_hold=hold)

    def rest(self, config: Config) -> None:
        """Another time without datagrams after which UDP flows end."""
        self.udp_idle = config.modules.edge_proxy.udp_idle_seconds

    def status(self) -> status.TunnelStatus:
        """All there is to see."""
        pairings = self.sessions.pairings.values()
        return status.TunnelStatus(
            node_name=self.settings.node_name,
            listen_port=self.settings.listen_port,
            sessions=[status.of_pairing(pairing) for pairing in pairings],
            relays=[status.of_relay(client, time.monotonic()) for client in self.relays.clients.values()],
            streams=sum(len(pairing.session.streams) for pairing in pairings),
            streams_total=self.streams.total,
            migrations=dict(self.sessions.migrations.total),
            compiled=native.used(),
            warnings=list(self.sessions.warnings),
        )


async def _persist(work: Callable[[], Awaitable[None]]) -> None:
    """Runs a task that ends only with the service. A fault in it is logged, and it begins anew: all that it keeps
    from round to round can be found again, while its end would cost every stream of the node."""
    while True:
        try:
            await work()
        except Exception as error:
            log.error("task failed", extra={"error": repr(error)}, exc_info=error)
        await asyncio.sleep(1.0)


async def main(service: Service) -> None:
    """Runs the tunnel until SIGTERM."""
    settings = Settings.of(service.config)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    server = LocalServer(service)
    tunnel = Tunnel(settings, service.identity)
    service.reload.on("modules.edgeTunnel.sessionHoldSeconds", tunnel.reconfigure)
    service.reload.on("modules.edgeProxy.udpIdleSeconds", tunnel.rest)
    api = servicer.TunnelServicer(tunnel, tunnel.streams.offers, lambda: service.warnings)
    server.add(servicer.add_to_server, api, servicer.FULL_NAME)
    try:
        await server.start()
        await tunnel.run(service.stopping)
    finally:
        await tunnel.close()
        await server.stop()
