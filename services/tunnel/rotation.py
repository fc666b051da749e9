"""Replaces connections before a NAT with an absolute mapping lifetime cuts them. What is known of such NATs is in
core/lifetime.py; here are the connections: links, and the control connections of relays.

Make-before-break both: a link gets a new one over the same relay (or to the same address) beside it, which takes over
when the peer has answered on it; then the old one is left in order, with GOAWAY. A relay gets a second control
connection, which reserves; the relay tells the newest of callers, so nobody finds the node away. While the old one comes
from the listen port the second cannot: it strays to another, at which a relay does not see what others shall dial. So a
third one follows, and whatever else made a control connection stray is mended the same way.

A direct link is replaced by the side that dialled it; a punched one by whoever sees it due: another hole is punched
beside it, from other ports (punchport.py). A link that could not be replaced in time is left for the standby.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakKeyDictionary

from services.tunnel import dialling, joining, metrics
from services.tunnel.backoff import Backoff
from services.tunnel.config import HANDSHAKE_TIMEOUT
from services.tunnel.core import paths
from services.tunnel.core.lifetime import Lifetimes
from services.tunnel.core.link import DIRECT, PATH_NAMES, PUNCHED, RELAYED, Link
from services.tunnel.core.punch import Punch
from services.tunnel.errors import LinkFailed
from services.tunnel.life import Life
from services.tunnel.pairing import Pairing
from services.tunnel.punching import punched
from services.tunnel.relay_client import RelayClient
from services.tunnel.relays import RelayPool
from services.tunnel.sessions import Sessions

log = logging.getLogger("causeway.tunnel")

AGAIN_AFTER = 3.0
"""Seconds between two attempts for the same session or relay: enough for three in a lifetime of 60 s."""
LOOK = 0.02
"""Seconds between two looks at whether it is there."""
WITHIN = 5.0
"""Seconds for the new connection to serve, and for the old one of a relay to finish what it is asked."""
RETURN_AFTER, RETURN_MOST = 1.0, 60.0
"""Seconds for which a control connection may stray, until the one before it has gone; and the longest pause between
attempts to bring it back, for each relay. One that fails costs the network nothing: the port is not free."""


class Rotation:
    """`tick` every second."""

    def __init__(self, sessions: Sessions, relays: RelayPool, lifetimes: Lifetimes) -> None:
        self._sessions = sessions
        self._relays = relays
        self._lifetimes = lifetimes
        self._tasks: set[asyncio.Task[None]] = set()
        self._not_before: WeakKeyDictionary[Life | Punch | RelayClient, float] = WeakKeyDictionary()
        """A session's punched links have a pace of their own: the standby must not be cut while a hole is punched."""
        self._returns: dict[str, Backoff] = {}
        """Of relays whose control connections stray."""

    def tick(self, now: float) -> None:
        """Tells what lives, and replaces what is due: one link of a session at a time."""
        for pairing in self._sessions.pairings.values():
            for link in list(pairing.session.links):
                if not self._due_link(pairing, link, now):
                    continue
                if self._leave(pairing, link, now):
                    continue
                if self._may(_pace(pairing, link), now):
                    self._spawn(self._rotate_link(pairing, link))
        clients = list(self._relays.clients.values())
        for client in clients:
            due = self._due_client(client, clients, now)
            if (due or self._may_return(client, now)) and self._may(client, now):
                self._spawn(self._rotate_client(client, back=not due))
        self._returns = {name: it for name, it in self._returns.items() if name in self._relays.clients}

    async def close(self) -> None:
        """Breaks off what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _due_link(self, pairing: Pairing, link: Link, now: float) -> bool:
        session, io = pairing.session, link.owner
        path = (io.local, io.far)
        if link.confirmed:
            self._lifetimes.lived(path, link.started, max(link.last_in, link.progress))
        if not link.usable or session.second is not None:
            return False
        if link.kind == DIRECT and io.came_to(self._sessions.settings.listen_port):
            return False
        expendable = link is not session.active or not session.streams
        return self._lifetimes.due(path, link.started, now, io.phase, expendable=expendable)

    def _due_client(self, client: RelayClient, clients: list[RelayClient], now: float) -> bool:
        path = (client.local, client.far)
        if not client.connected:
            return False
        self._lifetimes.lived(path, client.started, client.heard)
        if client.draining:
            return False
        expendable = any(other.reserved for other in clients if other is not client)
        return self._lifetimes.due(path, client.started, now, client.phase, expendable=expendable)

    def _may_return(self, client: RelayClient, now: float) -> bool:
        """To the listen port."""
        waited = self._returns.get(client.name, Backoff()).until
        return self._relays.strays(client) and now >= max(waited, client.started + RETURN_AFTER)

    def _may(self, one: Life | Punch | RelayClient, now: float) -> bool:
        if now < self._not_before.get(one, 0.0):
            return False
        self._not_before[one] = now + WITHIN + HANDSHAKE_TIMEOUT  # until it is done, below
        return True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---------------------------------------------------------------- links

    async def _rotate_link(self, pairing: Pairing, old: Link) -> None:
        limit = self._lifetimes.limit((old.owner.local, old.owner.far)) or 0.0
        where = {
            "peer": pairing.peer,
            "relay": old.relay,
            "address": old.remote,
            "path": PATH_NAMES[old.kind],
            "seconds": round(limit, 1),
        }
        new: Link | None = None
        try:
            async with asyncio.timeout(WITHIN + HANDSHAKE_TIMEOUT):
                new = await (self._punch if old.kind == PUNCHED else self._join)(pairing, old)
                # Measured, so that neither side takes the standby for nearer.
                if not await _until(lambda: new.path_rtt.smoothed is not None):
                    raise LinkFailed("no answer on the new one")
            if not (_serves(pairing, new) and _serves(pairing, old)):
                raise LinkFailed("one of both was lost meanwhile")
        except (LinkFailed, OSError, TimeoutError) as error:
            log.info("link not rotated", extra={**where, "error": str(error) or "no answer in time"})
            if new is not None and _serves(pairing, new) and _serves(pairing, old):  # else each attempt would leave one
                pairing.session.retire(new)
                pairing.mark()
        else:
            new.note = f"rotated: in place of one that would have been cut at {limit:.0f} s"
            old.note = f"rotated: it would be cut at {limit:.0f} s"
            pairing.apply(pairing.session.replace(old, new, time.monotonic()))
            pairing.mark()
            log.info("link rotated", extra=where)
            metrics.ROTATIONS.labels("link").inc()
        finally:
            self._not_before[_pace(pairing, old)] = time.monotonic() + AGAIN_AFTER

    async def _punch(self, pairing: Pairing, old: Link) -> Link:
        """Another punched link beside this one."""
        punching = self._sessions.punching
        if _younger(pairing, old) is None:
            punching.renew(pairing, old)
        # The other side's attempt begins later than it is asked for.
        await _until(
            lambda: _younger(pairing, old) is not None or (pairing.punch.starter and not punching.trying(pairing))
        )
        if (new := _younger(pairing, old)) is None:
            raise LinkFailed(f"no hole was punched: {pairing.punch.outcome}")
        return new

    def _leave(self, pairing: Pairing, old: Link, now: float) -> bool:
        """The standby takes over from a link that will be cut before another attempt to replace it is over."""
        path, session = (old.owner.local, old.owner.far), pairing.session
        others = [
            link for link in session.links if link is not old and link.usable and link.path_rtt.smoothed is not None
        ]
        if not others or not self._lifetimes.late(path, old.started, now):
            return False
        limit = self._lifetimes.limit(path) or 0.0
        old.note = f"left: it would be cut at {limit:.0f} s"
        pairing.apply(session.replace(old, min(others, key=paths.rank), now))
        pairing.mark()
        log.info("link left", extra={"peer": pairing.peer, "address": old.remote, "seconds": round(limit, 1)})
        return True

    async def _join(self, pairing: Pairing, old: Link) -> Link:
        """One more link by the same way."""
        sock = await self._dial(pairing.peer, old)
        try:
            new = await joining.join(pairing, sock, old.kind, old.relay)
            if new is None:
                raise LinkFailed("the session is gone")
            return new
        except BaseException:
            sock.close()
            raise

    async def _dial(self, peer: str, old: Link) -> socket.socket:
        if old.kind == RELAYED:
            return await self._relays.circuit(old.relay, peer)
        ip, port = dialling.split(old.remote)
        return await dialling.connect(ip, port, source=(self._sessions.settings.listen_address, 0))

    # ---------------------------------------------------------------- relays

    async def _rotate_client(self, client: RelayClient, *, back: bool = False) -> None:
        """`back`: to the listen port, or not at all."""
        successor = RelayClient(self._relays, client.name, hold=client.hold, exact=back)
        retired, pace = successor, self._returns.setdefault(client.name, Backoff())
        try:
            if not await _until(lambda: successor.serves):
                log.info("relay control not rotated", extra={"relay": client.name, "error": successor.state})
                if back:
                    pace.fail(time.monotonic(), successor.state, RETURN_MOST)
                    self._relays.unmap(client)
            elif self._relays.take_over(client, successor):
                pace.succeed(time.monotonic())
                successor.exact = False
                retired = client
                log.info("relay control rotated", extra={"relay": client.name, "address": client.local})
                metrics.ROTATIONS.labels("control").inc()
                await _until(lambda: client.at_rest)
        finally:
            self._not_before[client] = time.monotonic() + AGAIN_AFTER
            await retired.close()


def _pace(pairing: Pairing, link: Link) -> Life | Punch:
    return pairing.punch if link.kind == PUNCHED else pairing.life


def _serves(pairing: Pairing, link: Link) -> bool:
    return link.usable and link in pairing.session.links


def _younger(pairing: Pairing, old: Link) -> Link | None:
    """A punched link that came up after this one."""
    return next((link for link in punched(pairing) if link.usable and link.started > old.started), None)


async def _until(condition: Callable[[], bool]) -> bool:
    """Waits for it, WITHIN at most."""
    for _ in range(round(WITHIN / LOOK)):
        if condition():
            return True
        await asyncio.sleep(LOOK)
    return False
