"""The tunnel in motion: the only owner of its tasks, timers and clock.

The data's way through the code: proxy → `attach` → `Tunnel.open` → a `Pairing`'s stream → records → `linkio`
→ … → the other node's `linkio` → stream → `Listen` offer → its proxy → `attach` → backend.
"""

import asyncio
import collections
import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable

from services.runtime import telemetry
from services.runtime.identity import Identity
from services.runtime.process import Service
from services.runtime.serve import LocalServer
from services.tunnel import attach, dialling, handshake, metrics, servicer, status
from services.tunnel.attach import AttachSocket, Connection
from services.tunnel.config import HANDSHAKE_TIMEOUT, MAX_WAITING, OPEN_TIMEOUT, Settings
from services.tunnel.core.budget import Budget
from services.tunnel.core.frames import UDP, Opening, Reason
from services.tunnel.core.link import DIRECT, RELAYED
from services.tunnel.core.session import Session
from services.tunnel.door import Door
from services.tunnel.engine import Engine
from services.tunnel.errors import IDENTITY, LIMIT, NO_PATH, UNKNOWN_NODE, LinkFailed, Refused
from services.tunnel.handshake import Greeting, NewSession, PeerRejected, RejectedByPeer, Unacceptable
from services.tunnel.keeper import Keeper, join, make_link
from services.tunnel.keys import FIRST_LINK, SESSION_ID_SIZE, SessionKeys, fresh_nonce
from services.tunnel.linkio import tune
from services.tunnel.offers import Offers
from services.tunnel.pairing import Pairing
from services.tunnel.peers import Discovery, PeerInfo
from services.tunnel.relays import RelayPool
from services.tunnel.servicer import OpenRequest
from services.tunnel.streamio import FLOW_IDLE, FlowIO, StreamIO

log = logging.getLogger("causeway.tunnel")

TICK = 0.01
"""Seconds between looks at sessions that wait for something."""
TICK_IDLE = 1.0
SWEEP = 5.0
CLOCK_JUMP = 60.0
"""A tick that comes so many seconds late means that the machine slept: every link is asked at once, and all
backoffs are forgotten (Tailscale takes 10 min of wall clock; a suspend shorter than ours kills no link)."""
TOO_MANY = "more are not allowed; raise modules.edgeTunnel.maxSessions"
REPORT_DELAY = 0.05
"""Seconds that changes of reservations gather before they are published."""


class Tunnel:
    """Sessions by peer, streams by token, and everything that makes and ends them."""

    def __init__(self, settings: Settings, identity: Identity) -> None:
        self.settings = settings
        self.identity = identity
        self.instance = os.urandom(8).hex()
        self.engine = Engine()
        self.budget = Budget(settings.node_bytes)
        self.windows = Budget(settings.node_bytes // 2)
        self.pairings: dict[bytes, Pairing] = {}
        """All sessions by id."""
        self.preferred: dict[str, Pairing] = {}
        """The session for new streams, by peer."""
        self.keepers: dict[Pairing | str, Keeper] = {}
        """By session, or by peer while there is none."""
        self.streams_total = 0
        self.warnings: collections.deque[str] = collections.deque(maxlen=20)
        self.discovery = Discovery(settings.run_dir)
        self.relays = RelayPool(settings, identity, self._on_circuit, self._reservations_changed, self._relay_drained)
        self.door = Door(self._welcome)
        self.offers = Offers(settings.node_name)
        self.attach = AttachSocket(self.engine, settings.run_dir / "tunnel.attach", self.open, self.offers.answer)
        self._opening: dict[StreamIO | FlowIO, float] = {}
        """Streams of ours that the exit has not accepted, with the time at which patience ends."""
        self._waiting: set[asyncio.Task[None]] = set()
        self._closing = False
        self._awake = asyncio.Event()
        self._changed = asyncio.Event()

    # ---------------------------------------------------------------- life

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping`."""
        if self.settings.listen_port:
            self.door.open(self.settings.listen_address, self.settings.listen_port)
        self.attach.open()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_persist(work)) for work in (self._follow, self._tick, self._sweep, self._report)
            ]
            await stopping.wait()
            for task in tasks:
                task.cancel()

    async def _follow(self) -> None:
        await self.discovery.follow(self._on_peer, self.relays.remove, self._changed.set)

    async def close(self) -> None:
        """Ends everything: peers are told, so that they do not wait for us to come back."""
        self._closing = True
        await self.door.close()
        self.attach.close()
        for task in self._waiting:
            task.cancel()
        for pairing in list(self.pairings.values()):
            pairing.end("this node's tunnel stops")
        await asyncio.gather(
            *(keeper.close() for keeper in list(self.keepers.values())), *self._waiting, return_exceptions=True
        )
        await self.relays.close()
        await self.discovery.close()
        self.engine.close()

    async def _tick(self) -> None:
        """Every 10 ms while a session waits for something, else every second."""
        last = all_ticked = time.monotonic()
        while True:
            busy = [pairing for pairing in self.pairings.values() if pairing.session.busy]
            self._awake.clear()
            if busy:
                await asyncio.sleep(TICK)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_IDLE):
                        await self._awake.wait()
                        await asyncio.sleep(TICK)
            now = time.monotonic()
            # CLOCK_MONOTONIC stands still in a suspend, CLOCK_BOOTTIME does not.
            if now - last > CLOCK_JUMP or self._slept():
                self.revalidate()
            last = now
            self.engine.now = now
            if not busy or now - all_ticked >= TICK_IDLE:
                busy, all_ticked = list(self.pairings.values()), now
            for pairing in busy:
                try:
                    pairing.tick(now)
                except Exception:  # a fault of ours in one session: the others need their ticks
                    log.exception("tick failed", extra={"peer": pairing.peer})
                    pairing.broke()

    _asleep = 0.0

    def _slept(self) -> bool:
        asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        slept = asleep - self._asleep > 1.0 if self._asleep else False
        self._asleep = asleep
        return slept

    def revalidate(self) -> None:
        """The world may have changed: ask every link, forget every backoff."""
        log.info("revalidating all paths")
        now = time.monotonic()
        for pairing in self.pairings.values():
            pairing.session.revalidate(now)
            pairing.mark()
        for keeper in self.keepers.values():
            keeper.poke(forget=True)
        self.relays.retry_all()

    def wake(self) -> None:
        """A session sent something: its answer may need a tick."""
        if not self._awake.is_set():
            self._awake.set()

    async def _sweep(self) -> None:
        """What needs no haste: offers and openings that nobody answered, silent flows, duplicate sessions."""
        rounds = 0
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            self.offers.expire(now)
            for io, until in list(self._opening.items()):
                if now > until:
                    self._give_up(io)
            rounds += 1
            if rounds % int(SWEEP):
                continue
            for pairing in list(self.pairings.values()):
                for flow in [flow for flow in pairing.flows if now - flow.used_at > FLOW_IDLE]:
                    flow.expire()
                surplus = self.preferred.get(pairing.peer) is not pairing and not pairing.session.streams
                if surplus and pairing.keys.initiator and now - pairing.session.used_at > SWEEP:
                    pairing.end("another session with this peer serves")
            self._count()

    def _give_up(self, io: StreamIO | FlowIO) -> None:
        pairing = io.pairing
        if pairing.session.active is not None and not io.stream.datagram:
            self._opening[io] = time.monotonic() + OPEN_TIMEOUT  # the exit is dialling; its proxy has its own limit
            return
        keeper = self.keepers.get(pairing)
        reason = Reason(NO_PATH, f"no path to {pairing.peer}: {keeper.failure if keeper else 'the session is gone'}")
        self.stream_closed(io, reason)
        pairing.session.reset(io.stream, reason)
        io.close(reset=True)

    def _count(self) -> None:
        sessions = [pairing.session for pairing in self.pairings.values()]
        metrics.SESSIONS.set(len(sessions))
        metrics.STREAMS.set(sum(len(session.streams) for session in sessions))
        kinds = collections.Counter(link.kind for session in sessions for link in session.links)
        for kind, name in ((DIRECT, "direct"), (RELAYED, "relayed")):
            metrics.LINKS.labels(name).set(kinds[kind])
        metrics.HALF_OPEN.set(self.door.half_open)
        metrics.RESERVATIONS.set(len(self.relays.reservations()))
        for pairing in self.pairings.values():
            pairing.count()

    # ---------------------------------------------------------------- discovery and relays

    def _on_peer(self, info: PeerInfo) -> None:
        self.relays.update(info)
        pairing = self.preferred.get(info.name)
        keeper = self.keepers.get(pairing if pairing is not None else info.name)
        if keeper is not None:
            keeper.poke()

    async def resolve(self, peer: str, *, fresh: bool, traceparent: str = "") -> PeerInfo | None:
        """See Discovery.resolve."""
        info = await self.discovery.resolve(peer, fresh=fresh, traceparent=traceparent)
        if info is not None:
            self.relays.update(info)
        return info

    def _reservations_changed(self) -> None:
        self._changed.set()
        for reservation in self.relays.reservations():
            for keeper in self.keepers.values():
                keeper.forgive(reservation.relay)

    async def _report(self) -> None:
        """Keeps this node's record true: at once after a change, again when discovery came back."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(REPORT_DELAY)
            self._changed.clear()
            port = self.settings.listen_port
            if not await self.discovery.report(port, self.relays.reservations(), self.relays.observed()):
                await asyncio.sleep(1.0)
                self._changed.set()

    def _relay_drained(self, relay: str) -> None:
        for pairing in list(self.pairings.values()):
            pairing.apply(pairing.session.drain_relay(relay))
            pairing.mark()
        for keeper in self.keepers.values():
            keeper.poke()
        self._changed.set()

    # ---------------------------------------------------------------- sessions

    async def _on_circuit(self, sock: socket.socket, relay: str) -> None:
        self.door.admit(sock, relay)

    async def _welcome(self, sock: socket.socket, relay: str) -> None:
        """A connection from outside, or the end of a circuit: becomes a link, or is refused."""
        remote = "somebody who has gone already"
        try:
            remote = dialling.name_of(sock.getpeername())
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                first = await handshake.receive_exactly(sock, 1)
                if first[0] != handshake.TLS_CLIENT_HELLO:
                    await self._welcome_join(sock, first, relay, remote)
                    return
            new = await handshake.respond(sock, self.identity, first, self._greet, HANDSHAKE_TIMEOUT)
            self._register(new, sock, RELAYED if relay else DIRECT, relay, remote)
        except (LinkFailed, OSError, EOFError, TimeoutError) as error:
            sock.close()
            self._rejected(remote, relay, error)

    def _rejected(self, remote: str, relay: str, error: Exception) -> None:
        reason = error.reason if isinstance(error, PeerRejected | RejectedByPeer) else ""
        if not reason:
            log.info(
                "connection dropped",
                extra={"address": remote, "relay": relay, "error": str(error) or "no answer in time"},
            )
            return
        metrics.REJECTED.labels(reason).inc()
        log.warning("peer rejected", extra={"address": remote, "relay": relay, "reason": reason, "error": str(error)})
        self._warn(f"{remote.rpartition(':')[0]}: {error}")  # the port is another one each time

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    async def _welcome_join(self, sock: socket.socket, first: bytes, relay: str, remote: str) -> None:
        body = await handshake.read_join(sock, first)
        pairing = self.pairings.get(body[:SESSION_ID_SIZE])
        nonce = pairing.keys.check_join(body) if pairing is not None else None
        loop = asyncio.get_running_loop()
        if pairing is None or nonce is None or pairing.ended:
            await loop.sock_sendall(sock, handshake.unknown())
            sock.close()
            return
        ours = fresh_nonce()
        await loop.sock_sendall(sock, handshake.joined(pairing.keys, nonce, ours))
        pairing.add_link(sock, make_link(pairing, (nonce, ours), RELAYED if relay else DIRECT, relay, remote))

    def _greet(self, peer: str, hello: Greeting) -> Greeting:
        pairing = self.pairings.get(bytes.fromhex(hello.resume)) if _is_hex(hello.resume) else None
        known = pairing is not None and pairing.peer == peer
        others = [other for other in self.pairings.values() if other.peer != peer or other.instance == hello.instance]
        if len(others) >= self.settings.max_sessions:
            raise Unacceptable("limit", f"{self.settings.node_name} has {len(others)} sessions, and {TOO_MANY}")
        return Greeting(self.settings.cluster, self.settings.node_name, self.instance, known=known)

    async def establish(self, peer: str, sock: socket.socket, kind: int, relay: str, old: Pairing | None) -> Pairing:
        """A dialled connection becomes a link of `old`, or of a new session when there is none (any more)."""
        if old is not None and not old.ended:
            try:
                if await join(old, sock, kind, relay):
                    return old
            except LinkFailed:
                sock.close()
                raise
            # Not there: it may have restarted. Only an authenticated word counts, so shake hands anew.
            sock.close()
            sock = await self._again(peer, sock, kind, relay)
        remote = dialling.name_of(sock.getpeername())
        resume = old.keys.session_id.hex() if old is not None else ""
        hello = Greeting(self.settings.cluster, self.settings.node_name, self.instance, resume)
        try:
            new = await handshake.initiate(sock, self.identity, peer, hello, HANDSHAKE_TIMEOUT)
        except LinkFailed as error:
            sock.close()
            if isinstance(error, PeerRejected | RejectedByPeer):
                self._rejected(remote, relay, error)
            raise
        if old is not None and not new.greeting.known:
            old.end(f"{peer} does not know the session any more", say=False)
        return self._register(new, sock, kind, relay, remote)

    async def _again(self, peer: str, sock: socket.socket, kind: int, relay: str) -> socket.socket:
        """A second connection the same way."""
        if relay:
            client = self.relays.get(relay)
            if client is None:
                raise LinkFailed(f"relay {relay} is gone")
            return await client.connect(peer)
        info = await self.resolve(peer, fresh=False)
        for address in info.addresses if info is not None else ():
            with contextlib.suppress(LinkFailed):
                return await dialling.connect(address.ip, address.port, source=(self.settings.listen_address, 0))
        raise LinkFailed(f"{peer} does not answer any more")

    def _register(self, new: NewSession, sock: socket.socket, kind: int, relay: str, remote: str) -> Pairing:
        """A new session: supersedes those with an earlier run of the peer."""
        for pairing in [pairing for pairing in self.pairings.values() if pairing.peer == new.peer]:
            if pairing.instance != new.greeting.instance:
                pairing.end(f"{new.peer}'s tunnel was restarted", say=False)
        if len(self.pairings) >= self.settings.max_sessions:
            sock.close()
            raise LinkFailed(f"this node has {len(self.pairings)} sessions, and {TOO_MANY}")
        now = time.monotonic()
        session = Session(
            initiator=new.keys.initiator,
            cipher=new.keys.session_cipher(),
            buffers=self.engine.buffers,
            scratch=self.engine.scratch,
            now=now,
            capacity=self.settings.resend_bytes,
            max_streams=self.settings.max_streams,
            budget=self.budget,
            windows=self.windows,
        )
        pairing = Pairing(new.peer, new.keys, session, self.engine, self, new.greeting.instance)
        self.pairings[new.keys.session_id] = pairing
        self._prefer(pairing)
        # Who waits for a session with this peer has one now, also when the peer was quicker than our own attempt.
        keeper = self.keepers.pop(new.peer, None) or Keeper(self, new.peer, pairing, self._keeper_ended)
        self.keepers[pairing] = keeper
        keeper.adopt(pairing)
        log.info(
            "session up", extra={"peer": new.peer, "relay": relay, "address": remote, "session": session_name(new.keys)}
        )
        tune(sock)
        pairing.add_link(sock, make_link(pairing, (FIRST_LINK, FIRST_LINK), kind, relay, remote), new.head)
        return pairing

    def _prefer(self, pairing: Pairing) -> None:
        """Both may have dialled at once: then both sessions live, and new streams take the lower node's."""
        other = self.preferred.get(pairing.peer)
        if other is not None and not other.ended:
            lower = min(self.settings.node_name, pairing.peer)
            initiator = self.settings.node_name if other.keys.initiator else other.peer
            if initiator == lower and other.keys.initiator != pairing.keys.initiator:
                return
        self.preferred[pairing.peer] = pairing

    def _keeper_ended(self, keeper: Keeper) -> None:
        for key in [key for key, value in self.keepers.items() if value is keeper]:
            del self.keepers[key]
        if keeper.awaited and not self._closing:
            pairing = self.preferred.get(keeper.peer)
            if pairing is not None:
                keeper.tell(pairing)
                return
            if keeper.peer not in self.keepers:
                self.keepers[keeper.peer] = Keeper(self, keeper.peer, None, self._keeper_ended)
            self.keepers[keeper.peer].inherit(keeper)

    # ---------------------------------------------------------------- pairings tell

    def links_changed(self, pairing: Pairing, *, urgent: bool) -> None:
        keeper = self.keepers.get(pairing)
        if keeper is not None:
            keeper.poke(forget=urgent and pairing.session.active is None)

    def stalled(self, pairing: Pairing, cause: str, seconds: float) -> None:
        metrics.STALL.labels(cause).observe(seconds)
        log.info("streams stood still", extra={"peer": pairing.peer, "reason": cause, "seconds": round(seconds, 4)})

    def noted(self, pairing: Pairing, note: bytes) -> None:
        try:
            json.loads(note)
        except (ValueError, RecursionError):
            return

    def pairing_ended(self, pairing: Pairing, reason: str) -> None:
        log.info("session ended", extra={"peer": pairing.peer, "reason": reason, "session": session_name(pairing.keys)})
        self.pairings.pop(pairing.keys.session_id, None)
        self.offers.drop(pairing)
        if self.preferred.get(pairing.peer) is pairing:
            del self.preferred[pairing.peer]
            others = [other for other in self.pairings.values() if other.peer == pairing.peer]
            if others:
                self.preferred[pairing.peer] = others[0]
        keeper = self.keepers.get(pairing)
        if keeper is not None:
            keeper.poke()

    # ---------------------------------------------------------------- streams out

    def open(self, request: OpenRequest, sock: socket.socket, connection: Connection) -> None:
        """A client's socket was handed over: becomes a stream to another node."""
        span = telemetry.start_span("tunnel.open", parent=request.opening.traceparent, peer=request.node)
        if span.traceparent != request.opening.traceparent:
            old = request.opening
            request.opening = Opening(old.network, old.address, old.service, span.traceparent, old.client)
        pairing = self.preferred.get(request.node)
        if pairing is not None and pairing.session.active is not None:
            self._open_in(pairing, request, sock, connection, span)
            return
        if len(self._waiting) >= MAX_WAITING:
            reason = Reason(LIMIT, f"{MAX_WAITING} streams wait for a session already")
            self._refuse_open(request, sock, connection, span, reason)
            return
        task = asyncio.create_task(self._open_later(request, sock, connection, span))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _open_later(
        self, request: OpenRequest, sock: socket.socket, connection: Connection, span: telemetry.Span
    ) -> None:
        try:
            pairing = await self.session_with(request.node, request.timeout or OPEN_TIMEOUT, span.traceparent)
        except Refused as error:
            self._refuse_open(request, sock, connection, span, error.reason)
        except BaseException:
            attach.reset(sock)
            raise
        else:
            self._open_in(pairing, request, sock, connection, span)

    async def session_with(self, node: str, timeout: float, traceparent: str = "") -> Pairing:
        """The session with a node, made when there is none, or when it has a path again: perhaps the node restarted,
        and what would be opened in the old session would end with it. Refused says why not."""
        pairing = self.preferred.get(node)
        if pairing is not None and pairing.session.active is not None:
            return pairing
        if not node or node == self.settings.node_name:
            raise Refused(UNKNOWN_NODE, f"{node or 'an empty name'} is this node itself: dial it directly")
        keeper = self.keepers.get(pairing if pairing is not None else node)
        if keeper is None:
            keeper = self.keepers[node] = Keeper(self, node, None, self._keeper_ended)
            keeper.traceparent = traceparent
        try:
            pairing = await keeper.ready(timeout)
            if pairing.ended:
                raise Refused(NO_PATH, f"the session with {node} ended: {pairing.ended}")
            return pairing
        except TimeoutError:
            if keeper.unknown:
                raise Refused(UNKNOWN_NODE, f"nobody knows a node {node}") from None
            why = keeper.failure or "no answer from it"
            code = NO_PATH
            if why.startswith("refused by the other side: limit"):
                code = LIMIT
            elif why.startswith(("wrong-", "certificate-", "name-", "revoked", "refused by the other")):
                code = IDENTITY
            raise Refused(code, f"no path to {node} within {timeout:g} s: {why}") from None

    def _open_in(
        self, pairing: Pairing, request: OpenRequest, sock: socket.socket, connection: Connection, span: telemetry.Span
    ) -> None:
        opening = request.opening
        try:
            io = pairing.open_stream(opening)
        except (OverflowError, ValueError) as error:
            self._refuse_open(request, sock, connection, span, Reason(LIMIT, str(error)))
            return
        self.streams_total += 1
        metrics.STREAMS_TOTAL.labels("out", "udp" if opening.network == UDP else "tcp").inc()
        io.result = (connection, request.number)
        io.span = span
        self._opening[io] = time.monotonic() + (request.timeout or OPEN_TIMEOUT)
        if request.head and isinstance(io, StreamIO):
            pairing.session.send(io.stream, request.head)
        for datagram in request.datagrams:
            pairing.session.send_datagram(io.stream, datagram)
        io.attach(sock)

    def _refuse_open(
        self, request: OpenRequest, sock: socket.socket, connection: Connection, span: telemetry.Span, reason: Reason
    ) -> None:
        metrics.REFUSED_TOTAL.labels(str(reason.code)).inc()
        log.info(
            "stream refused", extra={"peer": request.node, "target": request.opening.address, "error": reason.message}
        )
        connection.answer(request.number, reason, 0)
        span.end(reason.message)
        attach.reset(sock)

    def stream_accepted(self, io: StreamIO | FlowIO) -> None:
        self._opening.pop(io, None)
        if io.result is not None:
            connection, number = io.result
            if number:
                active = io.pairing.session.active
                connection.answer(number, None, active.kind if active is not None else 0)
            io.result = None
        if io.span is not None:
            io.span.end()
            io.span = None

    def stream_closed(self, io: StreamIO | FlowIO, reason: Reason | None) -> None:
        """The stream is over; `reason` where the other side says why."""
        self._opening.pop(io, None)
        if io.result is not None and reason is not None:
            connection, number = io.result
            if reason.code:
                metrics.REFUSED_TOTAL.labels(str(reason.code)).inc()
            connection.answer(number, reason, 0)
        io.result = None
        if io.span is not None:
            io.span.end(reason.message if reason is not None else "")
            io.span = None

    def stream_opened(self, pairing: Pairing, io: StreamIO | FlowIO, opening: Opening) -> None:
        """The peer asks for a stream."""
        self.streams_total += 1
        metrics.STREAMS_TOTAL.labels("in", "udp" if opening.network == UDP else "tcp").inc()
        self.offers.add(pairing, io, opening)

    # ---------------------------------------------------------------- asked over gRPC

    async def ping(self, node: str, count: int, timeout: float) -> tuple[list[float], status.LinkStatus]:
        """Round trips inside the session, seconds."""
        pairing = await self.session_with(node, timeout)
        rtts: list[float] = []
        try:
            async with asyncio.timeout(timeout + count):
                for number in range(count):
                    rtts.append(await pairing.round_trip())
                    if number + 1 < count:
                        await asyncio.sleep(0.2)
        except TimeoutError:
            if not rtts:
                keeper = self.keepers.get(pairing)
                raise Refused(NO_PATH, f"{node} does not answer: {keeper.failure if keeper else ''}") from None
        active = pairing.session.active
        if active is None:
            raise Refused(NO_PATH, f"the path to {node} was lost")
        return rtts, status.of_link(active, active)

    def status(self) -> status.TunnelStatus:
        now = time.monotonic()
        return status.TunnelStatus(
            node_name=self.settings.node_name,
            listen_port=self.settings.listen_port,
            sessions=[status.of_pairing(pairing) for pairing in self.pairings.values()],
            relays=[
                status.RelayStatus(
                    relay=client.name,
                    address=client.address,
                    state=client.state,
                    rtt=client.rtt.smoothed,
                    observed=client.observed,
                    expires_in=client.reserved_until - now if client.reserved_until is not None else None,
                )
                for client in self.relays.clients.values()
            ],
            streams=sum(len(pairing.session.streams) for pairing in self.pairings.values()),
            streams_total=self.streams_total,
            warnings=list(self.warnings),
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


def _is_hex(text: str) -> bool:
    return bool(text) and len(text) % 2 == 0 and all(digit in "0123456789abcdef" for digit in text)


def session_name(keys: SessionKeys) -> str:
    """Short name of a session in logs and status."""
    return keys.session_id[:4].hex()


async def main(service: Service) -> None:
    """Runs the tunnel until SIGTERM."""
    settings = Settings.of(service.config)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    server = LocalServer(service)
    tunnel = Tunnel(settings, service.identity)
    server.add(servicer.add_to_server, servicer.TunnelServicer(tunnel, tunnel.offers), servicer.FULL_NAME)
    try:
        await server.start()
        await tunnel.run(service.stopping)
    finally:
        await tunnel.close()
        await server.stop()
