"""Hole punching with real sockets: carries out what `core/punch.py` decides.

Both sides connect from a port whose mapping a relay has seen (`punchport.py`), and listen on it, too: where one
side's SYN is the earlier by more than the way to the other, it is accepted there, which is as good. Who sends the
first byte does not depend on who connected: the initiator of the session says JOIN, the other side waits for it.
"""

import asyncio
import contextlib
import errno
import logging
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from services.tunnel import dialling
from services.tunnel.config import Settings
from services.tunnel.core.link import PUNCHED, Link
from services.tunnel.core.punch import AGAIN, OFFER, SUCCESS, Action, Address, Connect, Word
from services.tunnel.errors import LinkFailed
from services.tunnel.pairing import Pairing
from services.tunnel.punchport import PunchPort, own_addresses

log = logging.getLogger("causeway.tunnel")

WINDOW = 3.0
"""Seconds of one attempt: SYNs at 0 and 1 s, and time for what answers the second one. Measured on NATs of every kind:
those that can be punched are so by the first SYN, with a loss by the second."""
REDIAL = (0.002, 0.022)
"""Seconds, at random, before the next SYN to an address whose router answered with RST: both sides must not stay in
step."""
MAX_REDIALS = 200
"""SYNs to one address in one attempt."""
MAX_AT_ONCE = 16
"""Attempts under way with all peers: each has up to MAX_ADDRESSES flows in the router (FAILURES 23)."""
SPEAKS_WITHIN = 0.1
"""A connection accepted during a punch whose other end says nothing for so long, seconds, is the punched one: who
dials in the ordinary way speaks in its first flight."""

Join = Callable[[Pairing, socket.socket, int, str], Awaitable[Link | None]]


@dataclass(eq=False)
class Attempt:
    """One attempt under way, from the first word to the link."""

    former: tuple[Link, ...]
    """Punched links that there were already."""
    offer: Word | None = None
    """The peer's, which waits for this side's port."""
    port: PunchPort | None = None
    connect: Connect | None = None
    agreed: asyncio.Event = field(default_factory=asyncio.Event)
    """Both sides know where to connect."""
    linked: asyncio.Event = field(default_factory=asyncio.Event)
    """A punched link is up."""
    task: "asyncio.Task[None] | None" = None

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The peer's."""
        return self.connect.addresses if self.connect is not None else ()


class Punching:
    """All attempts of the node, one per peer at most."""

    def __init__(
        self,
        settings: Settings,
        observed: Callable[[], list[Address]],
        fresh: Callable[[], Awaitable[PunchPort | None]],
        join: Join,
        admit: Callable[[socket.socket, str], asyncio.Task[None]],
    ) -> None:
        self._settings = settings
        self._observed = observed
        self._fresh = fresh
        self._join = join
        self._admit = admit
        self._running: dict[Pairing, Attempt] = {}

    def consider(self, pairing: Pairing) -> None:
        """A path better than the one in use is wanted: begins if this side does and it is time."""
        if pairing.session.active is not None and pairing.punch.due(time.monotonic()):
            self._begin(pairing, None)

    def renew(self, pairing: Pairing, old: Link) -> None:
        """Another punched link is wanted in place of this one."""
        if pairing.punch.starter:
            pairing.punch.renew(old.id)
            self.consider(pairing)
        elif pairing not in self._running:
            self._say(pairing, Word(AGAIN, 0))

    def hear(self, pairing: Pairing, note: bytes) -> None:
        """The peer's tunnel says something."""
        word, attempt = Word.decode(note), self._running.get(pairing)
        if word is None or pairing.session.active is None:
            return
        if word.kind == AGAIN:
            links = [link for link in punched(pairing) if link.answers]
            if links and pairing.punch.starter:
                self.renew(pairing, links[0])
        elif attempt is not None and attempt.port is not None:
            self._receive(pairing, attempt, attempt.port, word)
        elif word.kind == OFFER and pairing.punch.would_answer(word, time.monotonic()):
            if attempt is not None:
                attempt.offer = word
            else:
                self._begin(pairing, word)

    def links_changed(self, pairing: Pairing) -> None:
        """A link of the session has come or gone."""
        attempt = self._running.get(pairing)
        if attempt is not None and any(link.usable and link not in attempt.former for link in punched(pairing)):
            attempt.linked.set()

    def trying(self, pairing: Pairing) -> bool:
        """An attempt is under way."""
        return pairing in self._running

    async def take(self, sock: socket.socket, address: Address) -> bool:
        """An accepted connection: joins it if it is a punched one and this side speaks first. Else it is left alone."""
        pairing = self._whose(address)
        if pairing is None or not pairing.keys.initiator or await _speaks(sock, SPEAKS_WITHIN):
            return False
        await self._joined(pairing, sock)
        return True

    async def _joined(self, pairing: Pairing, sock: socket.socket) -> str:
        """Makes a connection a link of the session; returns why it can't be one, and closes it then."""
        try:
            if await self._join(pairing, sock, PUNCHED, "") is not None:
                return ""
            failure = "the session is not known there"
        except LinkFailed as error:
            failure = str(error)
        except BaseException:
            sock.close()
            raise
        sock.close()
        return failure

    async def close(self) -> None:
        """Ends all attempts."""
        tasks = [attempt.task for attempt in self._running.values() if attempt.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _whose(self, address: Address) -> Pairing | None:
        """Whose punched connection comes from there: a symmetric NAT shows another port than the one it told of."""
        running = self._running.items()
        exact = (pairing for pairing, attempt in running if address in attempt.addresses)
        same_ip = (pairing for pairing, attempt in running if address[0] in (ip for ip, _ in attempt.addresses))
        return next(exact, None) or next(same_ip, None)

    # ---------------------------------------------------------------- one attempt

    def _begin(self, pairing: Pairing, offer: Word | None) -> None:
        """Those count that wait for the peer's word: it may come to all at once. Who is not answered asks again."""
        if len(self._running) >= MAX_AT_ONCE or not self._settings.listen_port:
            return
        if any(other.peer == pairing.peer for other in self._running):
            return
        attempt = self._running[pairing] = Attempt(tuple(punched(pairing)), offer)
        if not pairing.punch.tried and (seen := self._observed()):
            number = self._settings.listen_port
            self._open(pairing, attempt, PunchPort(number, own_addresses(self._settings, number, seen)))
        attempt.task = asyncio.create_task(self._attempt(pairing, attempt), name=f"punch {pairing.peer}")

    def _open(self, pairing: Pairing, attempt: Attempt, port: PunchPort) -> None:
        """There is a port, so there is something to say."""
        attempt.port = port
        if attempt.offer is not None:
            self._receive(pairing, attempt, port, attempt.offer)
        else:
            self._act(pairing, attempt, pairing.punch.begin(port.addresses, time.monotonic()))

    def _receive(self, pairing: Pairing, attempt: Attempt, port: PunchPort, word: Word) -> None:
        active = pairing.session.active
        if active is not None:
            actions = pairing.punch.receive(word, port.addresses, active.rtt, time.monotonic())
            self._act(pairing, attempt, actions)

    def _act(self, pairing: Pairing, attempt: Attempt, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Connect):
                attempt.connect = action
                attempt.agreed.set()
            else:
                self._say(pairing, action.word)

    def _say(self, pairing: Pairing, word: Word) -> None:
        pairing.session.note(word.encode())
        pairing.mark()

    async def _attempt(self, pairing: Pairing, attempt: Attempt) -> None:
        try:
            if attempt.port is None:
                port = await self._fresh()
                if port is None:
                    pairing.punch.unable(time.monotonic())
                    return
                self._open(pairing, attempt, port)
            await self._agreed(pairing, attempt)
            if attempt.connect is not None and attempt.port is not None:
                await self._connect_all(pairing, attempt, attempt.connect, attempt.port.number)
        except Exception as error:  # a fault of ours: the next attempt may work
            log.error("punching failed", extra={"peer": pairing.peer, "error": repr(error)}, exc_info=error)
        finally:
            del self._running[pairing]
            if attempt.port is not None:
                await attempt.port.close()

    async def _agreed(self, pairing: Pairing, attempt: Attempt) -> None:
        """Until both sides know where to connect, or the peer does not answer any more."""
        while not attempt.agreed.is_set() and (patience := pairing.punch.patience(time.monotonic())) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await attempt.agreed.wait()

    async def _connect_all(self, pairing: Pairing, attempt: Attempt, connect: Connect, port: int) -> None:
        outcome = "cancelled"
        try:
            await asyncio.sleep(connect.delay)
            outcome = await self._race(pairing, connect.addresses, port, attempt.linked)
            log.info("punched", extra={"peer": pairing.peer, "attempt": pairing.punch.attempts, "outcome": outcome})
        except Exception as error:
            outcome = repr(error)
            raise
        finally:
            pairing.punch.ended(outcome)

    async def _race(self, pairing: Pairing, addresses: tuple[Address, ...], port: int, linked: asyncio.Event) -> str:
        """Connects to all until `linked`, however that came about. Returns the outcome in words."""
        tasks = [asyncio.create_task(self._connect(pairing, address, port)) for address in addresses]
        try:
            async with asyncio.timeout(WINDOW):
                await linked.wait()  # also when all have failed: the other side's SYN may still be accepted
            return SUCCESS
        except TimeoutError:
            failures = [task.result() for task in tasks if task.done()]
            return "; ".join(filter(None, failures)) or f"no answer within {WINDOW:g} s"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, pairing: Pairing, address: Address, port: int) -> str:
        """One address until it is connected and joined, or hopeless; returns why it was."""
        source = (self._settings.listen_address, port)
        for _ in range(MAX_REDIALS):
            try:
                sock = await dialling.connect_from(source, address)
            except OSError as error:
                if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET):
                    await asyncio.sleep(random.uniform(*REDIAL))
                    continue
                return f"{dialling.join(*address)}: {os.strerror(error.errno or 0)}"
            if not pairing.keys.initiator:
                await asyncio.shield(self._admit(sock, ""))
                return ""
            failure = await self._joined(pairing, sock)
            return failure and f"{dialling.join(*address)}: {failure}"
        return f"{dialling.join(*address)}: refused {MAX_REDIALS} times"


def punched(pairing: Pairing) -> list[Link]:
    """The session's punched links, the oldest first."""
    return sorted((link for link in pairing.session.links if link.kind == PUNCHED), key=lambda link: link.started)


async def _speaks(sock: socket.socket, within: float) -> bool:
    """Whether something can be read; it is left unread."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        async with asyncio.timeout(within):
            await readable.wait()
        return True
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(sock)
