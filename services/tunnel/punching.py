"""Hole punching with real sockets: carries out what `core/punch.py` decides.

Both sides connect from their listen port, whose mapping the relays have seen, and keep listening on it: where one
side's SYN is the earlier by more than the way to the other, it is accepted there, which is as good. Who sends the
first byte does not depend on who connected: the initiator of the session says JOIN, the other side waits for it.
"""

import asyncio
import errno
import logging
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.tunnel import dialling
from services.tunnel.config import Settings
from services.tunnel.core.link import PUNCHED
from services.tunnel.core.punch import OFFER, Action, Address, Connect, Word
from services.tunnel.errors import LinkFailed
from services.tunnel.pairing import Pairing

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

Join = Callable[[Pairing, socket.socket, int, str], Awaitable[bool]]


@dataclass(slots=True)
class Attempt:
    """One attempt under way."""

    addresses: tuple[Address, ...]
    linked: asyncio.Event
    """A punched link is up."""
    task: asyncio.Task[None]


class Punching:
    """All attempts of the node, one per session at most."""

    def __init__(
        self,
        settings: Settings,
        observed: Callable[[], list[Address]],
        join: Join,
        admit: Callable[[socket.socket, str], asyncio.Task[None]],
    ) -> None:
        self._settings = settings
        self._observed = observed
        self._join = join
        self._admit = admit
        self._running: dict[Pairing, Attempt] = {}
        self._under_way: set[Pairing] = set()
        """Where an attempt has at least been agreed on, perhaps some that are over."""

    def consider(self, pairing: Pairing) -> None:
        """A path better than a relayed one is wanted: begins if this side does and it is time."""
        now = time.monotonic()
        if self._room(now) and pairing.session.active is not None:
            self._act(pairing, pairing.punch.begin(self._own(), now))

    def hear(self, pairing: Pairing, note: bytes) -> None:
        """The peer's tunnel says something."""
        word, active, now = Word.decode(note), pairing.session.active, time.monotonic()
        if word is None or active is None or (word.kind == OFFER and not self._room(now)):
            return
        self._act(pairing, pairing.punch.receive(word, self._own(), active.rtt, now))

    def _room(self, now: float) -> bool:
        """Whether one more attempt may begin. Those count that wait for the peer's word: it may come to all at once."""
        self._under_way = {pairing for pairing in self._under_way if pairing.punch.busy(now)}
        return len(self._under_way) < MAX_AT_ONCE

    def links_changed(self, pairing: Pairing) -> None:
        """A link of the session has come or gone."""
        attempt = self._running.get(pairing)
        if attempt is not None and any(link.kind == PUNCHED and link.usable for link in pairing.session.links):
            attempt.linked.set()

    def expects(self, ip: str) -> bool:
        """A connection from there may be a punched one."""
        return any(ip == expected for attempt in self._running.values() for expected, _ in attempt.addresses)

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
            if await self._join(pairing, sock, PUNCHED, ""):
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
        tasks = [attempt.task for attempt in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _own(self) -> tuple[Address, ...]:
        """Where this node's listen port may be seen from outside: relays saw some, IPv6 is often not translated."""
        port = self._settings.listen_port
        if not port:
            return ()
        ipv6 = dialling.source_of(socket.AF_INET6, self._settings.listen_address)
        return (*self._observed(), *([(ipv6, port)] if ipv6 else []))

    def _whose(self, address: Address) -> Pairing | None:
        """Whose punched connection comes from there: a symmetric NAT shows another port than the one it told of."""
        running = self._running.items()
        exact = (pairing for pairing, attempt in running if address in attempt.addresses)
        same_ip = (pairing for pairing, attempt in running if address[0] in (ip for ip, _ in attempt.addresses))
        return next(exact, None) or next(same_ip, None)

    def _act(self, pairing: Pairing, actions: list[Action]) -> None:
        if actions:
            self._under_way.add(pairing)
        for action in actions:
            if isinstance(action, Connect):
                linked = asyncio.Event()
                task = asyncio.create_task(self._attempt(pairing, action, linked), name=f"punch {pairing.peer}")
                self._running[pairing] = Attempt(action.addresses, linked, task)
            else:
                pairing.session.note(action.word.encode())
                pairing.mark()

    async def _attempt(self, pairing: Pairing, connect: Connect, linked: asyncio.Event) -> None:
        outcome = "cancelled"
        try:
            await asyncio.sleep(connect.delay)
            outcome = await self._race(pairing, connect.addresses, linked)
            log.info("punched", extra={"peer": pairing.peer, "attempt": pairing.punch.attempts, "outcome": outcome})
        except Exception as error:  # a fault of ours: the next attempt may work
            outcome = repr(error)
            log.error("punching failed", extra={"peer": pairing.peer, "error": outcome}, exc_info=error)
        finally:
            del self._running[pairing]
            pairing.punch.ended(outcome)

    async def _race(self, pairing: Pairing, addresses: tuple[Address, ...], linked: asyncio.Event) -> str:
        """Connects to all until `linked`, however that came about. Returns the outcome in words."""
        tasks = [asyncio.create_task(self._connect(pairing, address)) for address in addresses]
        try:
            async with asyncio.timeout(WINDOW):
                await linked.wait()  # also when all have failed: the other side's SYN may still be accepted
            return "punched"
        except TimeoutError:
            failures = [task.result() for task in tasks if task.done()]
            return "; ".join(filter(None, failures)) or f"no answer within {WINDOW:g} s"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, pairing: Pairing, address: Address) -> str:
        """One address until it is connected and joined, or hopeless; returns why it was."""
        source = (self._settings.listen_address, self._settings.listen_port)
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
