"""The control connection to one relay: reservation, circuits on demand, heartbeats, drain."""

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from services.runtime.tls import FramedTls, TlsError
from services.tunnel import dialling, peers, relay_leg
from services.tunnel.config import HANDSHAKE_TIMEOUT
from services.tunnel.core.link import RoundTrip
from services.tunnel.core.punch import usable
from services.tunnel.dialling import CONNECT_TIMEOUT
from services.tunnel.errors import LinkFailed, RelayRefused
from services.tunnel.linkio import ends
from services.tunnel.peers import (
    Denied,
    Draining,
    Granted,
    LegOffer,
    Load,
    RejectedBy,
)
from services.tunnel.relay_contact import dial, greet, refusal_of

if TYPE_CHECKING:
    from services.tunnel.relays import RelayPool

log = logging.getLogger("causeway.tunnel")

HEARTBEAT = 5.0
"""Seconds between heartbeats: a relay that died in silence shall not be asked for circuits for long."""
HEARTBEAT_TIMEOUT = 3.0
BACKOFF_FIRST, BACKOFF_MOST = 0.2, 1.5
"""Seconds between attempts, doubling, +- 50 % (NetBird: quick at first; ours stays quick, as a relay that
returns may be the only path, and until it is back a session has no standby)."""
REQUEST_TIMEOUT = 5.0
ON_DEMAND_IDLE = 120.0
"""A control connection that was opened for one circuit is closed after so many seconds."""


class RelayClient:
    """This node's dealings with one relay."""

    def __init__(self, pool: "RelayPool", name: str, *, hold: bool, exact: bool = False) -> None:
        self.name = name
        self.exact = exact
        """Comes from the listen port, or not at all; else from another one where that cannot be."""
        self.hold = hold
        """Keep a reservation; else it was opened on demand for a circuit."""
        self.state = "connecting"
        self.address = ""
        self.local = ""
        self.far = ""
        """IP of this host, and of the relay, that the connection has."""
        self.observed = ""
        """ "ip:port" as the relay sees this control connection."""
        self.from_listen_port = False
        self.mapped = ""
        """ "ip:port" as the relay sees the listen port, or saw it a moment ago; empty where it does not."""
        self.rtt = RoundTrip()
        self.started = self.heard = self.asked = time.monotonic()
        """When the connection came to be, when the relay last said something, when it was last asked something."""
        self.phase = random.random()
        """See LinkIO.phase."""
        self.reserved_until: float | None = None
        self.draining = False
        self.load = 0
        """Permille, as it last said."""
        self.alternatives: tuple[str, ...] = ()
        """Relays that it named when it refused."""
        self.used_at = time.monotonic()
        self._pool = pool
        self._tls: FramedTls | None = None
        self._up = asyncio.Event()
        self._answers: dict[int, asyncio.Future[peers.RelayMessage]] = {}
        self._number = 0
        self._legs: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._refuses = False
        """It answers, and grants no reservation."""
        self._complaint = ""
        self._retry = asyncio.Event()
        self.task = asyncio.create_task(self._run(), name=f"relay {name}")

    @property
    def reserved(self) -> bool:
        """The node can be reached through this relay now."""
        return self.reserved_until is not None and not self.draining

    @property
    def failing(self) -> bool:
        """It did not answer twice in a row, or grants nothing: another one must take its place."""
        return (self._failures >= 2 or self._refuses) and not self.reserved

    @property
    def connected(self) -> bool:
        """The relay said welcome."""
        return self._tls is not None

    def release(self) -> None:
        """No reservation is needed here any more; it goes when it has not been used for a while."""
        self.hold = False
        self.used_at = time.monotonic()

    def retry_now(self) -> None:
        """Something changed: forget the backoff; or ask at once whether the relay is still there."""
        self._retry.set()

    async def connect(self, peer: str, traceparent: str = "") -> socket.socket:
        """A circuit to a peer, ready for its first byte. LinkFailed or RelayRefused."""
        self.used_at = time.monotonic()
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await self._up.wait()
            answer = await self._ask(lambda number: peers.encode_connect(number, peer, traceparent))
        except TimeoutError:
            raise LinkFailed(f"relay {self.name} did not answer ({self.state})") from None
        if isinstance(answer, Denied):
            raise refusal_of(self.name, answer)
        if not isinstance(answer, LegOffer):
            raise LinkFailed(f"relay {self.name} gave no circuit")
        return await self._open_leg(answer)

    # ---------------------------------------------------------------- the connection

    async def _run(self) -> None:
        while True:
            began, wait = time.monotonic(), 0.0
            try:
                await self._serve()
            except RelayRefused as refusal:
                # It spreads those whom it cannot serve over time. Our own jitter would bring all back within 2 s, each
                # with a handshake, and take down what is left of its capacity.
                wait = refusal.retry_after
                self._refuses, self.alternatives = True, refusal.alternatives
                self._complain(str(refusal))
            except (LinkFailed, TlsError, EOFError, OSError, TimeoutError, ValueError) as error:
                self._complain(str(error) or type(error).__name__)
            except Exception as error:  # what a relay says must not end its client for good
                self._complain(repr(error))
            finally:
                self._down()
            # A task group that fails while it is being cancelled raises its failure alone; the request to end must
            # not get lost in it, or `close` waits for ever.
            if self.task.cancelling():
                return
            if time.monotonic() - began > 10:
                self._failures = 0
            delay = max(min(BACKOFF_FIRST * 2**self._failures, BACKOFF_MOST) * random.uniform(0.5, 1.5), wait)
            self._failures = min(self._failures + 1, 10)
            unused = not self.hold and time.monotonic() - self.used_at > ON_DEMAND_IDLE
            if unused or (self.failing and self._pool.relay_info(self.name) is None):
                self._pool.forget(self)
                return
            if self._failures == 2 or wait:
                self._pool.changed()
            await self._pause(delay)

    async def _pause(self, seconds: float) -> None:
        """Until then, or until `retry_now`."""
        self._retry.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._retry.wait()

    def _complain(self, text: str) -> None:
        self.state = f"failed: {text}"
        if text != self._complaint:
            self._complaint = text
            log.warning("relay control failed", extra={"relay": self.name, "error": text})

    async def _serve(self) -> None:
        self.state = "connecting"
        sock = await self._dial()
        tls = await FramedTls.start(sock, self._pool.identity, server=False, timeout=HANDSHAKE_TIMEOUT)
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                welcome = await greet(tls, self._pool.identity, self._pool.settings, self.name)
            self.observed = self._credible(welcome.observed)
            self.mapped = self.observed if self.from_listen_port else ""
            self.state, self.draining = "connected", False
            self.heard = time.monotonic()
            self._tls = tls
            self._up.set()
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(tls))
                try:
                    await self._beat(tls)
                finally:
                    reading.cancel()
        except BaseExceptionGroup as failures:
            # Not `except*`: in the first releases of Python 3.11 what is raised in there comes out as a group again.
            expected, rest = failures.split((LinkFailed, TlsError, EOFError, OSError, TimeoutError, ValueError))
            if expected is None or rest is not None:
                raise
            raise _first(expected) from None
        finally:
            await asyncio.shield(tls.close())

    def _credible(self, observed: str) -> str:
        """Where a relay says that it sees us, if that can be so: an address, and not the relay's own. Others will dial
        it, and one that is none must not spoil the record of this node."""
        try:
            known = usable([dialling.split(observed)])
        except ValueError:
            known = ()
        return observed if known and observed != self.address else ""

    async def _dial(self) -> socket.socket:
        info, source = self._pool.relay_info(self.name), self._pool.control_source()
        sock = await dial(info.relay_addresses if info is not None else (), source, exact=self.exact)
        self.address = dialling.name_of(sock.getpeername())
        self.local, self.far = ends(sock)
        self.started = time.monotonic()
        self.from_listen_port = sock.getsockname()[1] == source[1]
        return sock

    async def _beat(self, tls: FramedTls) -> None:
        """Reserves, refreshes, and asks now and then whether the relay is alive."""
        loop = asyncio.get_running_loop()
        refresh_at = 0.0
        while True:
            now = loop.time()
            if self.reserved_until is not None and now >= self.reserved_until:
                self.reserved_until = None  # it ran out, and was not renewed
                self._pool.changed()
            if self.hold and not self.draining and now >= refresh_at:
                answer = await self._ask(peers.encode_reserve)
                if isinstance(answer, Granted):
                    was = self.reserved
                    self.reserved_until = now + answer.ttl
                    refresh_at = now + answer.ttl / 2
                    self.state, self._complaint, self._failures, self._refuses = "reserved", "", 0, False
                    self.alternatives = ()
                    if not was:
                        log.info("relay reserved", extra={"relay": self.name, "observed": self.observed})
                        self._pool.changed()
                elif isinstance(answer, Denied):
                    self.state = f"refused: {answer.message or answer.reason}"
                    refusal = refusal_of(self.name, answer)
                    refresh_at = now + max(refusal.retry_after, 1.0)
                    self.alternatives = refusal.alternatives
                    if not self._refuses:
                        self._refuses = True
                        self._pool.changed()
            began = time.monotonic()
            answer = await self._ask(peers.encode_heartbeat)
            self.rtt.sample(time.monotonic() - began)
            if isinstance(answer, Load):
                self.load = answer.permille
            self._pool.measured(self.name, time.monotonic() - began, time.monotonic())
            if not self.hold and time.monotonic() - self.used_at > ON_DEMAND_IDLE:
                self._pool.forget(self)
                return
            await self._pause(HEARTBEAT)

    async def _read(self, tls: FramedTls) -> None:
        while True:
            number, message = peers.decode_relay(await tls.receive())
            self.heard = time.monotonic()
            waiting = self._answers.pop(number, None) if number else None
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
            elif isinstance(message, LegOffer):
                # Without a peer it is a circuit that we asked for and nobody waits for any more.
                self._spawn(self._answer_leg(message) if message.peer else self._withdraw(message))
            elif isinstance(message, Draining):
                self.draining = True
                self.reserved_until = None
                self.state = "draining"
                log.info("relay drains", extra={"relay": self.name})
                self._spawn(self._leave(message))
            elif isinstance(message, RejectedBy):
                raise LinkFailed(f"refused by the relay: {message.reason}: {message.message}")

    async def _ask(self, encode: Callable[[int], bytes]) -> peers.RelayMessage:
        tls = self._tls
        if tls is None:
            raise LinkFailed(f"not connected to relay {self.name} ({self.state})")
        self._number += 1
        number = self._number
        if not self._answers:
            self.asked = time.monotonic()
        waiting: asyncio.Future[peers.RelayMessage] = asyncio.get_running_loop().create_future()
        self._answers[number] = waiting
        try:
            async with asyncio.timeout(HEARTBEAT_TIMEOUT):
                await tls.send(encode(number))
                return await waiting
        except TimeoutError:
            # Alive on paper only: a zombie connection must not pass for a reservation (iroh #4476). Nor may what is left
            # of it keep the next one from the listen port: the kernel would hold it for 15 s (TCP_USER_TIMEOUT).
            tls.abort(reset=True)
            raise LinkFailed(f"relay {self.name} did not answer within {HEARTBEAT_TIMEOUT:g} s") from None
        except TlsError as error:  # it was closed while this request waited for its turn
            raise LinkFailed(f"relay {self.name}: {error}") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if waiting.cancelled() and not (task is not None and task.cancelling()):
                raise LinkFailed(f"the connection to relay {self.name} broke") from None
            raise
        finally:
            self._answers.pop(number, None)

    def _down(self) -> None:
        was = self.reserved
        if self.connected and not (self.draining or self.task.cancelling()):
            asked = self.asked if self.asked > self.heard else time.monotonic()
            self._pool.lifetimes.lost((self.local, self.far), self.started, self.heard, asked)
        self._tls = None
        self._up.clear()
        self.reserved_until = None
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(LinkFailed(f"the connection to relay {self.name} broke"))
                waiting.exception()
        self._answers.clear()
        if was:
            self._pool.changed()

    # ---------------------------------------------------------------- circuits

    async def _open_leg(self, offer: LegOffer) -> socket.socket:
        """Whoever gives up on the way tells the relay, so that the other end does not wait in vain: by a word, or, once
        the leg has shown its token, by closing it."""
        ip, port = dialling.split(self.address)
        source = (self._pool.settings.listen_address, 0)
        try:
            sock = await dialling.connect(ip, port, source=source, timeout=min(offer.timeout, CONNECT_TIMEOUT))
        except BaseException:
            self._spawn(self._withdraw(offer))
            raise
        return await relay_leg.pair(sock, offer, self.name)

    async def _withdraw(self, offer: LegOffer) -> None:
        """Tells the relay that our leg will not come."""
        if self._tls is not None:
            with contextlib.suppress(TlsError, OSError):
                async with asyncio.timeout(HEARTBEAT_TIMEOUT):
                    await self._tls.send(peers.encode_withdraw(offer.token))

    async def _answer_leg(self, offer: LegOffer) -> None:
        try:
            sock = await self._open_leg(offer)
        except LinkFailed as error:
            log.info("circuit failed", extra={"relay": self.name, "peer": offer.peer, "error": str(error)})
            return
        await self._pool.on_circuit(sock, self.name)

    async def _leave(self, notice: Draining) -> None:
        await asyncio.sleep(random.uniform(0, notice.spread))
        self._pool.drained(self.name)

    def _spawn(self, work: Awaitable[None]) -> None:
        if len(self._legs) >= 256:  # a relay that floods us with offers
            if asyncio.iscoroutine(work):
                work.close()
            return
        task = asyncio.ensure_future(work)
        self._legs.add(task)
        task.add_done_callback(self._legs.discard)

    @property
    def serves(self) -> bool:
        """It can be used for what it is there for."""
        return self.reserved if self.hold else self.connected

    @property
    def at_rest(self) -> bool:
        """Nothing is under way that its end would break."""
        return not (self._answers or self._legs)

    async def close(self) -> None:
        """Ends the control connection; circuits stay."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        while self._legs:  # a leg that is broken off leaves a word to the relay, for which it is too late
            for leg in self._legs:
                leg.cancel()
            await asyncio.gather(*self._legs, return_exceptions=True)


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error
