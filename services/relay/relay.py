"""The relay at work: joins the broker's decisions with sockets, connections and time."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import SystemRandom
from time import monotonic

from services.runtime import telemetry
from services.runtime.core.bucket import TokenBucket
from services.runtime.core.proof import TOKEN_LENGTH
from services.runtime.identity import Identity
from services.runtime.sockets import reset

from . import dialback
from .control import Control
from .core.broker import Action, Broker, Dial, Disconnect, Failed, Opening, Send
from .core.circuits import Circuit
from .core.drain import Drain
from .core.greeting import LEG_READY
from .core.limits import Limits
from .core.load import BusyShare
from .core.messages import DialledBack, Message, Reject, Voucher
from .core.report import Report
from .core.role import Role
from .engine import Engine
from .flow import Splice
from .listener import Newcomer, PublicPort, open_listener
from .status import CircuitStatus, ReservationStatus, Status
from .waiting import Waiting

FLUSH = 0.5
"""Seconds for the last messages to reach the clients before the relay goes."""
COMPLAINTS = (2.0, 20.0)
"""Log lines a second, and at once, about rejected clients: whoever is wrong tries again and again."""


class Relay:
    """Reservations, circuits and their sockets. `changed` is called when what it reports may have changed.

    An inactive relay does nothing and owns nothing; `open` makes it serve.
    """

    def __init__(
        self,
        identity: Identity,
        limits: Limits,
        role: Role,
        *,
        alternatives: tuple[str, ...],
        changed: Callable[[], None],
        on_proof: Callable[[bytes, socket.socket], None] = lambda token, sock: reset(sock),
        log: logging.Logger,
    ) -> None:
        self.identity = identity
        self.limits = limits
        self.role = role
        self._changed = changed
        self._on_proof = on_proof
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._broker = Broker(
            identity.node_name, identity.cluster, limits, SystemRandom(), self._voucher, alternatives=alternatives
        )
        self._engine: Engine | None = None
        self._port: PublicPort | None = None
        self._controls: dict[int, Control] = {}  # greeted ones
        self._tasks: set[asyncio.Task[str]] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._listen_address = ""
        self._waiting = Waiting(self._loop)
        self._splices: dict[int, Splice] = {}
        self._spans: dict[int, telemetry.Span] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._drain: Drain | None = None
        self._fewer = asyncio.Event()
        self._busy = BusyShare(monotonic())
        self._complaints = TokenBucket(*COMPLAINTS, monotonic())

    # --- life --------------------------------------------------------------------------------------------------

    def open(self, listen_address: str, port: int) -> None:
        """Serve the public port. OSError when it cannot be had."""
        listener = open_listener(listen_address, port)
        self._listen_address = listen_address
        self._engine = Engine(
            self._loop,
            idle_timeout=self.limits.idle_timeout,
            bytes_per_second=self.limits.max_bytes_per_second_per_peer,
        )
        self._port = PublicPort(
            self._loop,
            listener,
            self.limits,
            on_control=self._on_control,
            on_leg=self._on_leg,
            on_proof=self._on_proof,
            log=self._log,
        )

    def adjust(self, role: Role, limits: Limits, alternatives: tuple[str, ...]) -> None:
        """Other limits, and perhaps another reason to be what it is."""
        self.role, self.limits = role, limits
        self._broker.adjust(limits, alternatives)
        if self._engine is not None:
            self._engine.limit(idle_timeout=limits.idle_timeout, bytes_per_second=limits.max_bytes_per_second_per_peer)
        if self._port is not None:
            self._port.adjust(limits)

    async def drain(self, deadline: float) -> int:
        """Let nothing new in and ask all holders to move within `deadline` seconds. Returns when the circuits are
        gone or the time is over, with the number left. A later call can only shorten the time."""
        if self._engine is None:
            return 0
        now = monotonic()
        if self._drain is None or self._drain.shorten(now + deadline):
            self._drain = self._drain or Drain(now + deadline)
            self._log.info("draining", extra={"deadline_s": deadline, "circuits": len(self._broker.circuits)})
            self._dispatch(self._broker.drain(deadline))
            self._changed()
        while not self._drain.over(len(self._broker.circuits), monotonic()):
            self._fewer.clear()
            try:
                async with asyncio.timeout_at(self._drain.ends_at):
                    await self._fewer.wait()
            except TimeoutError:
                pass
        return len(self._broker.circuits)

    async def close(self) -> None:
        """End everything."""
        if self._port is not None:
            self._port.close()
            await self._flush()
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._tasks, *self._dials]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._waiting.close()
        if self._engine is not None:
            self._engine.close()
        for span in self._spans.values():
            span.end("relay stopped")

    async def _flush(self) -> None:
        try:
            async with asyncio.timeout(FLUSH):
                await asyncio.gather(*(control.flush() for control in self._controls.values()))
        except TimeoutError:
            pass

    # --- control connections -----------------------------------------------------------------------------------

    def _on_control(self, newcomer: Newcomer) -> None:
        control = Control(newcomer, self)
        task = self._loop.create_task(control.serve(), name=f"control {newcomer.observed}")

        def close() -> None:
            task.cancel()

        newcomer.close = close
        self._tasks.add(task)
        task.add_done_callback(partial(self._left, newcomer, control))

    def _left(self, newcomer: Newcomer, control: Control, task: asyncio.Task[str]) -> None:
        """A control connection is over; also when it was cancelled before its first step."""
        assert self._port is not None
        self._tasks.discard(task)
        # Without this there is a cycle through the task, and a flood's remains would wait for the collector.
        newcomer.close = newcomer.sock.close
        newcomer.close()
        self._port.settle(newcomer.key)
        self._broker.leave(newcomer.key)
        if task.cancelled():
            why = "closed by this relay"
        elif error := task.exception():  # one connection's failure must not take the others down
            why = f"{type(error).__name__}: {error}"
            self._log.error("control connection failed", extra={"remote": newcomer.observed}, exc_info=error)
        else:
            why = task.result()
        if self._controls.pop(newcomer.key, None) is not None:
            self._log.info("peer left", extra={"peer": control.peer, "reason": why})
            self._changed()

    def greet(self, control: Control, hello: Message, proven: str) -> Message:
        """First message of a control connection; returns the answer."""
        assert self._port is not None
        answer, actions = self._broker.greet(control.key, hello, proven, control.observed)
        if control.key in self._broker.connections:
            self._port.settle(control.key)
            self._controls[control.key] = control
            self._log.info("peer came", extra={"peer": proven, "remote": control.observed})
        self._dispatch(actions)
        return answer

    def receive(self, control: Control, id: int, message: Message) -> None:  # noqa: A002  the wire's word
        """A later message."""
        self._broker.busy_share = self._busy_share()
        self._dispatch(self._broker.receive(control.key, id, message, monotonic()))

    def count(self, reason: str) -> None:
        """Something was refused outside the broker."""
        self._broker.refused[reason] += 1

    def complain(self, event: str, reject: Reject, peer: str, remote: str) -> None:
        """Log a rejection, ours or theirs."""
        now = monotonic()
        if self._complaints.level(now) >= 1:
            self._complaints.take(1, now)
            extra = {"peer": peer, "remote": remote, "reason": reject.reason, "detail": reject.message}
            self._log.warning(event, extra=extra)

    # --- circuits ----------------------------------------------------------------------------------------------

    def _on_leg(self, key: int, token: bytes, sock: socket.socket) -> None:
        circuit = self._broker.arrive(token, key, monotonic())
        if circuit is None:
            reset(sock)
            return
        self._waiting.add(key, sock, lambda: self._dispatch(self._broker.hang_up(circuit, key)))
        if circuit.paired:
            self._splice(circuit)

    def _splice(self, circuit: Circuit) -> None:
        assert self._engine is not None
        caller, callee = (self._waiting.take(leg) for leg in circuit.legs if leg is not None)
        try:
            for sock in (caller, callee):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.send(LEG_READY)
        except OSError as error:  # one of them hung up while it waited
            reset(caller)
            reset(callee)
            self._over(circuit, error.strerror or "hung up")
            return
        on_end = partial(self._over, circuit)
        self._splices[circuit.id] = self._engine.add(caller, circuit.caller, callee, circuit.callee, on_end)
        self._end_span(circuit)
        self._log.info(
            "circuit opened", extra={"circuit": circuit.id, "caller": circuit.caller, "callee": circuit.callee}
        )
        self._changed()

    def _over(self, circuit: Circuit, reason: str) -> None:
        """A paired circuit has ended."""
        splice = self._splices.pop(circuit.id, None)
        self._end_span(circuit, reason)
        self._broker.finish(circuit.id)
        moved = (splice.forth.moved, splice.back.moved) if splice is not None else (0, 0)
        self._log.info(
            "circuit closed",
            extra={
                "circuit": circuit.id,
                "caller": circuit.caller,
                "callee": circuit.callee,
                "reason": reason,
                "bytes_from_caller": moved[0],
                "bytes_from_callee": moved[1],
            },
        )
        self._fewer.set()
        self._changed()

    def _end_span(self, circuit: Circuit, error: str = "") -> None:
        span = self._spans.pop(circuit.id, None)
        if span is not None:
            span.end(error)

    # --- decisions to deeds ------------------------------------------------------------------------------------

    def _dispatch(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(conn, id, message):
                    control = self._controls.get(conn)
                    if control is not None:
                        control.send(id, message)
                case Disconnect(conn, reason):
                    control = self._controls.get(conn)
                    if control is not None:
                        control.disconnect(reason)
                case Dial():
                    task = self._loop.create_task(self._dial_back(action), name=f"dial back {action.ip}:{action.port}")
                    self._dials.add(task)
                    task.add_done_callback(self._dials.discard)
                case Opening(circuit, traceparent):
                    self._spans[circuit.id] = telemetry.start_span(
                        "relay.circuit",
                        parent=traceparent,
                        caller=circuit.caller,
                        callee=circuit.callee,
                        circuit=circuit.id,
                    )
                case Failed(circuit, reason, given_up):
                    self._end_span(circuit, reason)
                    self.count("given-up" if given_up else "not-paired")
                    self._fewer.set()
                    self._log.log(
                        logging.INFO if given_up else logging.WARNING,
                        "circuit failed",
                        extra={"caller": circuit.caller, "callee": circuit.callee, "reason": reason},
                    )
                    for leg in circuit.legs:
                        if leg is not None:
                            reset(self._waiting.take(leg))
        self._changed()
        self._arm()

    async def _dial_back(self, wanted: Dial) -> None:
        token = secrets.token_bytes(TOKEN_LENGTH)
        try:
            outcome = await dialback.dial(wanted.ip, wanted.port, token, source=self._listen_address)
        finally:
            self._broker.dial_backs.done()
        self._dispatch([Send(wanted.conn, wanted.id, DialledBack(outcome, token))])

    def _arm(self) -> None:
        due = self._broker.next_tick
        if due is None or (self._timer is not None and self._timer.when() <= due):
            return  # a timer that comes too early looks again
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._dispatch(self._broker.tick(monotonic()))

    def _voucher(self, peer: str, ttl: float) -> Voucher:
        relay = self.identity.node_name
        expires_at = int(time.time() + ttl)
        return Voucher(relay, peer, expires_at, self.identity.sign(Voucher.signed_bytes(relay, peer, expires_at)))

    def _busy_share(self) -> float:
        return self._busy.update(self._engine.busy_seconds, monotonic()) if self._engine is not None else 0.0

    # --- what is told ------------------------------------------------------------------------------------------

    @property
    def serving(self) -> bool:
        return self._port is not None

    def report(self) -> Report:
        """For discovery."""
        self._broker.busy_share = self._busy_share()
        return Report(
            serving=self.serving,
            # Whoever forces the role gives their word for it, as those do who name it.
            configured=self.role.configured or self.role.forced,
            load_permille=self._broker.load_permille,
            circuits=len(self._splices),
            draining=self._broker.draining,
        )

    def status(self) -> Status:
        """The whole at this moment."""
        now = monotonic()
        broker, engine, port = self._broker, self._engine, self._port
        self._broker.busy_share = self._busy_share()
        return Status(
            node_name=self.identity.node_name,
            active=self.serving,
            reason=self.role.reason,
            conditions=self.role.conditions,
            listen_port=port.port if port is not None else 0,
            limits=self.limits,
            reservations=[
                ReservationStatus(r.peer, broker.connections[r.conn].observed, max(0.0, r.expires_at - now))
                for r in broker.reservations
            ],
            circuits=[self._circuit_status(circuit, now) for circuit in broker.circuits if circuit.paired],
            draining=broker.draining,
            load_permille=broker.load_permille,
            bytes_total=engine.bytes_total if engine is not None else 0,
            circuits_total=broker.circuits_total,
            refused=dict(broker.refused + (port.refused if port is not None else Counter())),
            half_open=len(port) if port is not None else 0,
            connections=len(broker.connections),
            splices_total=engine.splices_total if engine is not None else 0,
        )

    def _circuit_status(self, circuit: Circuit, now: float) -> CircuitStatus:
        splice = self._splices.get(circuit.id)
        moved = (splice.forth.moved, splice.back.moved) if splice is not None else (0, 0)
        return CircuitStatus(circuit.caller, circuit.callee, now - circuit.opened_at, *moved)
