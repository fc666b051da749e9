"""How one way to a peer becomes a link: dialled, and joined to the session, or the first of a new one.

Handshakes take turns, so that the connection that comes second is joined to the session which the first one made. A JOIN
that somebody waits for needs no turn: it can do no more than add a link.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from services.tunnel import dialling, joining
from services.tunnel.candidates import Candidate
from services.tunnel.config import Settings
from services.tunnel.core.link import DIRECT
from services.tunnel.dialling import CONNECT_TIMEOUT
from services.tunnel.errors import LinkFailed
from services.tunnel.relays import RelayPool
from services.tunnel.turns import Turns

if TYPE_CHECKING:
    from services.tunnel.pairing import Pairing

MAX_DIALS = 32
"""Addresses dialled at a time, for all peers together, while nobody waits for a path. Those that do not answer take 5 s
each, and a router remembers the flow for 120 s (Linux): 800 flows at the most, where 5,000 fill it (FAILURES 23)."""


class Node(Protocol):
    """What it needs of the tunnel."""

    settings: Settings
    relays: RelayPool
    dials: asyncio.Semaphore
    """Of MAX_DIALS."""

    async def greet(
        self, peer: str, sock: socket.socket, kind: int, relay: str, old: "Pairing | None"
    ) -> "Pairing": ...


class Linking:
    """With one peer. `current`: the session, if there is one; `wanted`: whether a way still fills a gap."""

    def __init__(
        self, node: Node, peer: str, current: "Callable[[], Pairing | None]", wanted: Callable[[Candidate], bool]
    ) -> None:
        self._node = node
        self._peer = peer
        self._current = current
        self._wanted = wanted
        self._turns = Turns()

    async def link(self, candidate: Candidate, traceparent: str, *, urgent: bool) -> "Pairing | None":
        """The session that has one more link now; None when that is not wanted any more. LinkFailed, OSError. `urgent`:
        there is no path at all. `traceparent`: of the stream that waits for it."""
        kind, relay = candidate.kind, candidate.relay
        sock = await self._dial(candidate, traceparent, urgent=urgent)
        try:
            async with contextlib.nullcontext() if urgent and self._current() is not None else self._turns:
                old = self._current()
                if old is None:
                    return await self._node.greet(self._peer, sock, kind, relay, None)
                if not urgent and not self._wanted(candidate):
                    sock.close()
                    return None
                if await joining.join(old, sock, kind, relay) is not None:
                    return old
            # Not there: it may have restarted. Only an authenticated word counts, so shake hands anew, and by the same
            # way, which has just answered.
            sock.close()
            sock = await self._dial(candidate, traceparent, urgent=urgent)
            async with self._turns:
                if old.ended:
                    raise LinkFailed(f"the session has ended: {old.ended}")
                return await self._node.greet(self._peer, sock, kind, relay, old)
        except BaseException:
            sock.close()
            raise

    async def _dial(self, candidate: Candidate, traceparent: str, *, urgent: bool) -> socket.socket:
        if candidate.kind != DIRECT:
            return await self._node.relays.circuit(candidate.relay, self._peer, traceparent)
        source = (self._node.settings.listen_address, 0)
        async with contextlib.nullcontext() if urgent else self._node.dials:
            return await dialling.connect(candidate.ip, candidate.port, source=source, timeout=CONNECT_TIMEOUT)
