"""Sessions: how they begin, by our dialling or the peer's, which one serves, and how they end."""

import asyncio
import collections
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable

from services.runtime.core import proof
from services.runtime.identity import Identity
from services.tunnel import arrivals, dialling, handshake, joining, metrics, usage
from services.tunnel.config import HANDSHAKE_TIMEOUT, Settings
from services.tunnel.core import choice
from services.tunnel.core.absence import Absences
from services.tunnel.core.budget import Budget
from services.tunnel.core.choice import Use
from services.tunnel.core.lifetime import Lifetimes
from services.tunnel.core.link import DIRECT, PUNCHED, RELAYED, Link
from services.tunnel.core.session import Session
from services.tunnel.door import Door
from services.tunnel.engine import Engine
from services.tunnel.errors import IDENTITY, LIMIT, NO_PATH, UNKNOWN_NODE, LinkFailed, Refused, UnknownPeer
from services.tunnel.handshake import Greeting, NewSession, PeerRejected, RejectedByPeer, Unacceptable
from services.tunnel.keeper import Keeper
from services.tunnel.keys import FIRST_LINK, SessionKeys
from services.tunnel.linking import MAX_DIALS
from services.tunnel.linkio import tune
from services.tunnel.migrations import Migrations
from services.tunnel.pairing import Pairing
from services.tunnel.peers import Discovery, PeerInfo
from services.tunnel.punching import Punching
from services.tunnel.punchport import FreshPorts
from services.tunnel.relays import RelayPool
from services.tunnel.streams import Streams

log = logging.getLogger("causeway.tunnel")

TOO_MANY = "more are not allowed; raise modules.edgeTunnel.maxSessions"
SURPLUS_AFTER = 5.0
"""Seconds without use after which a second session with the same peer ends."""


class Sessions:
    """All sessions by id, the one that serves by peer, and for each peer a keeper that looks for paths."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        engine: Engine,
        discovery: Discovery,
        relays: RelayPool,
        streams: Streams,
        lifetimes: Lifetimes,
        wake: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.identity = identity
        self.engine = engine
        self.discovery = discovery
        self.relays = relays
        self.streams = streams
        self.lifetimes = lifetimes
        self.dials = asyncio.Semaphore(MAX_DIALS)
        self.wake = wake
        """A session sent something: its answer may need a tick."""
        self.instance = os.urandom(8).hex()
        self.budget = Budget(settings.node_bytes)
        self.windows = Budget(settings.node_bytes // 2)
        self.absences = Absences()
        self.pairings: dict[bytes, Pairing] = {}
        """All sessions by id."""
        self.preferred: dict[str, Pairing] = {}
        """The session for new streams, by peer."""
        self.keepers: dict[Pairing | str, Keeper] = {}
        """By session, or by peer while there is none."""
        self.migrations = Migrations()
        self.warnings: collections.deque[str] = collections.deque(maxlen=20)
        self.door = Door(self._welcome)
        fresh = FreshPorts(settings, identity, relays, self.door.accept)
        self.punching = Punching(settings, relays.observed, fresh.open, joining.join, self.door.admit)
        self.arrivals = arrivals.Arrivals()
        """Connections that relays make back to us, because `netcheck` asked them to."""
        self._closing = False

    async def close(self) -> None:
        """Ends them all: peers are told, so that they do not wait for us to come back."""
        self._closing = True
        await self.door.close()
        await self.punching.close()
        for pairing in list(self.pairings.values()):
            pairing.end("this node's tunnel stops")
        await asyncio.gather(*(keeper.close() for keeper in list(self.keepers.values())), return_exceptions=True)

    async def resolve(self, peer: str, *, fresh: bool, traceparent: str = "") -> PeerInfo | None:
        """See Discovery.resolve."""
        info = await self.discovery.resolve(peer, fresh=fresh, traceparent=traceparent)
        if info is not None:
            self.relays.update(info)
        return info

    async def known(self, peer: str, *, fresh: bool = False) -> PeerInfo | None:
        """As `resolve`, for those to whom it is all one why a peer is not known."""
        with contextlib.suppress(UnknownPeer):
            return await self.resolve(peer, fresh=fresh)
        return None

    def keeper_of(self, peer: str) -> Keeper | None:
        """Who looks for paths to a peer, if somebody does."""
        pairing = self.preferred.get(peer)
        return self.keepers.get(pairing if pairing is not None else peer)

    def punch(self, pairing: Pairing) -> None:
        """A path better than a relayed one is wanted for a session. Where there are two with a peer, since both dialled
        at once, only the one that serves gets it: the other will end, and its attempt would be in the way."""
        if self.preferred.get(pairing.peer) is pairing:
            self.punching.consider(pairing)

    def use(self, pairing: Pairing | None) -> Use:
        """What this node's sessions make of the relays, for the choice of one for `pairing`."""
        return usage.of(self.pairings.values(), pairing)

    def failure(self, pairing: Pairing) -> str:
        """Why the last search for a path of this session found none."""
        keeper = self.keepers.get(pairing)
        return keeper.failure if keeper is not None else "the session is gone"

    def revalidate(self, cause: str) -> None:
        """The world may have changed: ask every link, forget every backoff. `cause`: "clock" or "network"."""
        log.info("revalidating all paths", extra={"reason": cause})
        metrics.REVALIDATIONS.labels(cause).inc()
        now = time.monotonic()
        for pairing in self.pairings.values():
            pairing.session.revalidate(now)
            pairing.punch.forget()
            pairing.mark()
        for keeper in self.keepers.values():
            keeper.hurry()
        self.relays.retry_all()

    def moved(self, gone: frozenset[str]) -> None:
        """Addresses or routes of this host changed. The kernel leaves connections of addresses that are gone as they
        are, silent for minutes; here they are lost at once."""
        for pairing in list(self.pairings.values()):
            for link in list(pairing.session.links):
                if link.owner.local in gone and link in pairing.session.links:
                    pairing.lose(link.owner, "its local address is gone")
        self.relays.moved(gone)
        self.lifetimes.forget(gone)
        self.revalidate("network")

    def far_ends(self) -> set[str]:
        """IP addresses at the other ends of all links."""
        return {link.owner.far for pairing in self.pairings.values() for link in pairing.session.links} - {""}

    def drain(self, relay: str) -> None:
        """A relay said that it will stop: its links are left."""
        for pairing in list(self.pairings.values()):
            pairing.apply(pairing.session.drain_relay(relay))
            pairing.mark()
        for keeper in self.keepers.values():
            keeper.poke()

    def reserved(self, relay: str) -> None:
        """A relay is there (again): peers that can only be reached by it are asked at once."""
        for keeper in self.keepers.values():
            keeper.forgive(relay)

    def sweep(self, now: float) -> None:
        """Ends sessions that another one with the same peer has replaced."""
        for pairing in list(self.pairings.values()):
            surplus = self.preferred.get(pairing.peer) is not pairing and not pairing.session.streams
            if surplus and pairing.keys.initiator and now - pairing.session.used_at > SURPLUS_AFTER:
                pairing.end("another session with this peer serves")

    # ---------------------------------------------------------------- how they begin

    async def _welcome(self, sock: socket.socket, relay: str) -> None:
        """A connection from outside, or the end of a circuit: becomes a link, or is refused."""
        remote = "somebody who has gone already"
        try:
            remote = dialling.name_of(sock.getpeername())
            if not relay and await self.punching.take(sock, dialling.split(remote)):
                return
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                first = await handshake.receive_exactly(sock, 1)
                if first == proof.MAGIC[:1] and not relay:
                    await self.arrivals.take(sock, first)
                    return
                if first[0] != handshake.TLS_CLIENT_HELLO:
                    await joining.welcome(sock, first, relay, remote, self.pairings)
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

    def _greet(self, peer: str, hello: Greeting) -> Greeting:
        pairing = self.pairings.get(bytes.fromhex(hello.resume)) if _is_hex(hello.resume) else None
        known = pairing is not None and pairing.peer == peer
        others = [other for other in self.pairings.values() if other.peer != peer or other.instance == hello.instance]
        if len(others) >= self.settings.max_sessions:
            raise Unacceptable("limit", f"{self.settings.node_name} has {len(others)} sessions, and {TOO_MANY}")
        return Greeting(self.settings.cluster, self.settings.node_name, self.instance, known=known)

    async def greet(self, peer: str, sock: socket.socket, kind: int, relay: str, old: Pairing | None) -> Pairing:
        """A dialled connection becomes the first link of a new session. `old`: one that the peer said it does not know,
        without proof."""
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
            absences=self.absences,
        )
        pairing = Pairing(new.peer, new.keys, session, self.engine, self, self.streams, new.greeting.instance)
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
        pairing.add_link(sock, joining.make_link(pairing, (FIRST_LINK, FIRST_LINK), kind, relay, remote), new.head)
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

    async def session_with(self, node: str, timeout: float, traceparent: str = "", *, patient: bool = False) -> Pairing:
        """The session with a node, made when there is none, or when it has a path again: perhaps the node restarted,
        and what would be opened in the old session would end with it. Refused says why not. `patient`: also a node that
        nobody knows is awaited until the time is over."""
        pairing = self.preferred.get(node)
        if pairing is not None and pairing.session.active is not None:
            return pairing
        if not node or node == self.settings.node_name:
            raise Refused(UNKNOWN_NODE, f"{node or 'an empty name'} is this node itself: dial it directly")
        if pairing is None and len(self.pairings) >= self.settings.max_sessions:
            raise Refused(LIMIT, f"this node has {len(self.pairings)} sessions, and {TOO_MANY}")
        keeper = self.keepers.get(pairing if pairing is not None else node)
        if keeper is None:
            keeper = self.keepers[node] = Keeper(self, node, None, self._keeper_ended)
            keeper.traceparent = traceparent
        try:
            pairing = await keeper.ready(timeout, patient=patient)
            if pairing.ended:
                raise Refused(NO_PATH, f"the session with {node} ended: {pairing.ended}")
            return pairing
        except TimeoutError:
            if keeper.unknown:
                raise Refused(UNKNOWN_NODE, f"nobody knows a node {node}") from None
            why = keeper.failure or "no answer from it"
            code = NO_PATH
            if TOO_MANY in why or why.startswith("refused by the other side: limit"):
                code = LIMIT
            elif why.startswith(("wrong-", "certificate-", "name-", "revoked", "refused by the other")):
                code = IDENTITY
            raise Refused(code, f"no path to {node} within {timeout:g} s: {why}") from None

    # ---------------------------------------------------------------- how they change and end

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

    def links_changed(self, pairing: Pairing, *, urgent: bool) -> None:
        self.punching.links_changed(pairing)
        cut_off = urgent and pairing.session.active is None
        if cut_off:
            self.relays.retry_all()  # what took all links may have taken the relays' control connections, too
        keeper = self.keepers.get(pairing)
        if keeper is not None:
            keeper.poke(forget=cut_off)

    def renew(self, pairing: Pairing, old: Link) -> None:
        """A fresh link by the same way is wanted in place of this one."""
        if old.kind == PUNCHED:
            self.punching.renew(pairing, old)
        if (keeper := self.keepers.get(pairing)) is not None:
            keeper.forgive(old.remote)
            keeper.poke()

    def switched(self, pairing: Pairing, before: str, after: str, why: str, *, lost: bool) -> None:
        """See Migrations.note."""
        self.migrations.note(pairing, before, after, why, lost=lost)

    def link_lost(self, link: Link) -> None:
        heard = max(link.last_in, link.progress)
        asked = link.outstanding_since()
        path = (link.owner.local, link.owner.far)
        self.lifetimes.lost(path, link.started, heard, time.monotonic() if asked is None else asked)

    def stalled(self, pairing: Pairing, cause: str, seconds: float) -> None:
        metrics.STALL.labels(cause).observe(seconds)
        log.info("streams stood still", extra={"peer": pairing.peer, "reason": cause, "seconds": round(seconds, 4)})

    def noted(self, pairing: Pairing, note: bytes) -> None:
        """The peer's tunnel says something: on which relay to be, or of punching."""
        relay = choice.decode_word(note)
        if relay is None:
            self.punching.hear(pairing, note)
        elif not pairing.keys.initiator:  # who began the session has the say
            pairing.apply(pairing.session.agree(relay))
            pairing.mark()

    def pairing_ended(self, pairing: Pairing, reason: str) -> None:
        log.info("session ended", extra={"peer": pairing.peer, "reason": reason, "session": session_name(pairing.keys)})
        self.pairings.pop(pairing.keys.session_id, None)
        self.streams.offers.drop(pairing)
        if self.preferred.get(pairing.peer) is pairing:
            del self.preferred[pairing.peer]
            others = [other for other in self.pairings.values() if other.peer == pairing.peer]
            if others:
                self.preferred[pairing.peer] = others[0]
        keeper = self.keepers.get(pairing)
        if keeper is not None:
            keeper.poke()


def _is_hex(text: str) -> bool:
    return bool(text) and len(text) % 2 == 0 and all(digit in "0123456789abcdef" for digit in text)


def session_name(keys: SessionKeys) -> str:
    """Short name of a session in logs and status."""
    return keys.session_id[:4].hex()
