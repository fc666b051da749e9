"""Keeps one session on its feet: brings it up, finds it links, a better path, and a standby.

One task per peer. It knows three gaps: no link at all (ANY), or else a path that is only relayed (BETTER) and a relayed
or punched path without a standby (STANDBY). It tries the candidates that fill a gap, staggered, each with a backoff of
its own; the first that succeeds closes it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from services.tunnel import peers, stagger
from services.tunnel.backoff import Backoff
from services.tunnel.candidates import Candidate, find
from services.tunnel.config import SESSION_IDLE
from services.tunnel.core import gaps as missing
from services.tunnel.core.choice import Use
from services.tunnel.core.gaps import ANY, BETTER, STANDBY
from services.tunnel.errors import UNKNOWN_NODE, LinkFailed, Refused, RelayRefused, UnknownPeer
from services.tunnel.linking import Linking, Node
from services.tunnel.waiting import Waiting

if TYPE_CHECKING:
    from services.tunnel.pairing import Pairing

log = logging.getLogger("causeway.tunnel")

BACKOFF_URGENT = 1.0
"""Longest pause between attempts while streams wait for a link, seconds."""
BACKOFF_CALM = 60.0
"""… while there is a link and only a better one is looked for (Tailscale upgrades every 60 s)."""
POLL = 5.0
"""Seconds between looks at what is missing, and at what discovery knows of the peer; changes are told at once."""
MAX_BACKOFFS = 64
STRANGER_AFTER = 3.0
"""Seconds for which nobody who is asked knows the peer until those who wait for it are refused: a node that has just
started is known to others within two."""


class Host(Node, Protocol):
    """What the keeper needs of the tunnel."""

    async def resolve(self, peer: str, *, fresh: bool, traceparent: str = "") -> peers.PeerInfo | None: ...
    async def known(self, peer: str, *, fresh: bool = False) -> peers.PeerInfo | None: ...
    def use(self, pairing: "Pairing | None") -> Use: ...
    def punch(self, pairing: "Pairing") -> None: ...


class Keeper:
    """See the module. `pairing` is None until the first link is up."""

    def __init__(self, host: Host, peer: str, pairing: "Pairing | None", on_end: Callable[["Keeper"], None]) -> None:
        self.host = host
        self.peer = peer
        self.pairing = pairing
        self.failure = ""
        """Why the last round found no path."""
        self.traceparent = ""
        """Of the stream that made us look for a path."""
        self._on_end = on_end
        self._waiting = Waiting()
        self._poked = asyncio.Event()
        self._backoffs: dict[str, Backoff] = {}
        self._fresh_next = False
        self._suggested: tuple[str, ...] = ()
        """Relays that the last one to refuse a circuit named in its place."""
        self._linking = Linking(host, peer, lambda: self.pairing, lambda it: it.fills in self._open_gaps())
        self._info: peers.PeerInfo | None = None
        self._known_at = float("-inf")
        """What discovery knows of the peer, and when it said so."""
        self._stranger_since: float | None = None
        """When discovery first said that nobody knows the peer; None: somebody does, or nobody could say."""
        self._gap_since: dict[str, float] = {}
        self._round: asyncio.Task[float] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self.task = asyncio.create_task(self._run(), name=f"keeper {peer}")

    # ---------------------------------------------------------------- for others

    async def ready(self, timeout: float, *, patient: bool = False) -> "Pairing":
        """The session, once it is made, or has a path again. TimeoutError after so many seconds; unless `patient`, Refused
        when nobody knows the peer."""
        if self.pairing is not None and self.pairing.session.active is not None:
            return self.pairing
        self.poke()
        return await self._waiting.wait(timeout, patient=patient)

    def poke(self, *, forget: bool = False) -> None:
        """Look again now. `forget`: what failed before may work now."""
        if forget:
            self._backoffs.clear()
            self._fresh_next = True
        self._poked.set()

    def learn(self, info: peers.PeerInfo) -> None:
        """Discovery has news of the peer."""
        self._info, self._known_at, self._stranger_since = info, time.monotonic(), None
        self.poke()

    def hurry(self) -> None:
        """This host's network changed or it slept, and only this side knows: no patience. What is being tried may come
        from an address that is gone, or wait for a time that was right before: begin anew."""
        self._gap_since = dict.fromkeys((ANY, STANDBY), float("-inf"))
        if self._round is not None:
            self._round.cancel()
        self.poke(forget=True)

    def forgive(self, where: str) -> None:
        """One candidate, an address or a relay, is there again."""
        if self._backoffs.pop(where, None) is not None:
            self.poke()

    def adopt(self, pairing: "Pairing") -> None:
        """The session is up (by us, or by the peer)."""
        self.pairing = pairing
        self.traceparent = ""
        self._gap_since.clear()
        self.tell(pairing)
        self.poke()

    def tell(self, pairing: "Pairing") -> None:
        """Those who wait get this session."""
        self._waiting.tell(pairing)

    def inherit(self, former: "Keeper") -> None:
        """Takes over who waited for a session that has ended."""
        self._waiting.inherit(former._waiting)
        self.poke()

    @property
    def awaited(self) -> bool:
        """Somebody waits for a session, or for a path."""
        return bool(self._waiting)

    @property
    def unknown(self) -> bool:
        """Nobody who was asked knows the peer: not that nobody could be asked."""
        return self._stranger_since is not None

    def backoff(self, candidate: Candidate) -> Backoff:
        """How a candidate fared so far."""
        return self._backoffs.get(candidate.where, Backoff())

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    # ---------------------------------------------------------------- the task

    async def _run(self) -> None:
        try:
            while True:
                self._poked.clear()
                if self._over():
                    return
                if self.pairing is not None and self.pairing.session.active is not None:
                    self.tell(self.pairing)
                delay = POLL
                try:
                    gaps = self._due_gaps()
                    if gaps:
                        delay = await self._one_round(gaps)
                    delay = min(delay, self._patience())
                except Exception as error:  # without its keeper a session would neither recover nor end
                    log.error("keeper failed", extra={"peer": self.peer, "error": repr(error)}, exc_info=error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._poked.wait()
        finally:
            if self._renewing is not None:
                self._renewing.cancel()
                await asyncio.gather(self._renewing, return_exceptions=True)
            self._on_end(self)

    def _over(self) -> bool:
        pairing, now = self.pairing, time.monotonic()
        if pairing is None:
            return not self._waiting
        if pairing.ended:
            return True
        session = pairing.session
        if session.linkless_since is not None and now - session.linkless_since > self.host.settings.session_hold:
            pairing.end(
                f"no path to {self.peer} for {self.host.settings.session_hold:g} s: {self.failure or 'all attempts failed'}"
            )
            return True
        if pairing.keys.initiator and not session.streams and now - session.used_at > SESSION_IDLE:
            pairing.end("idle")
            return True
        return False

    def _gaps(self) -> set[str]:
        """What is missing."""
        pairing = self.pairing
        if pairing is None or pairing.ended:
            return {ANY}
        return missing.among(pairing.session.links, pairing.session.active)

    def _due_gaps(self) -> set[str]:
        """What is missing, and this side's to do something about now."""
        gaps, now = self._gaps(), time.monotonic()
        self._gap_since = {gap: self._gap_since.get(gap, now) for gap in gaps}
        return {gap for gap in gaps if now >= self._due_at(gap)}

    def _due_at(self, gap: str) -> float:
        """When this side shall do something about a gap, on the monotonic clock."""
        since, pairing = self._gap_since[gap], self.pairing
        if pairing is None:
            return since
        return since + missing.patience(gap, pairing.session.links, initiator=pairing.keys.initiator)

    def _patience(self) -> float:
        """Seconds until another gap becomes due."""
        now = time.monotonic()
        return min((due - now for due in map(self._due_at, self._gap_since) if due > now), default=POLL)

    async def _one_round(self, gaps: set[str]) -> float:
        """`_fill`, which `hurry` may break off."""
        self._round = asyncio.create_task(self._fill(gaps))
        try:
            return await self._round
        except asyncio.CancelledError:
            if self.task.cancelling():
                raise
            return 0.0

    async def _fill(self, gaps: set[str]) -> float:
        """One round of attempts; returns how long to wait before the next."""
        if BETTER in gaps and self.pairing is not None:
            self.host.punch(self.pairing)
        info = await self._known()
        if self._fresh_next and (self._renewing is None or self._renewing.done()):
            # Beside the attempts: whatever cut us off from the peer may have cut off those whom discovery asks.
            self._renewing = asyncio.create_task(self._renew())
        self._fresh_next = False
        candidates = self._candidates(info, gaps)
        now = time.monotonic()
        due = [candidate for candidate in candidates if self._backoff(candidate).until <= now]
        if due:
            # With no path at all whatever comes due while the others are tried is tried, too: one may hang.
            await self._race(candidates if ANY in gaps else due, gaps)
        if ANY in gaps and ANY in self._due_gaps():
            self._fresh_next = True  # what we know may be stale
            if not candidates:
                self.failure = "nobody knows it" if self.unknown else "no address and no relay of it is known"
            since = self._stranger_since
            if self.pairing is None and since is not None and time.monotonic() - since >= STRANGER_AFTER:
                self._waiting.refuse(Refused(UNKNOWN_NODE, f"nobody knows a node {self.peer}"))
        elif self._due_gaps() - gaps:
            return 0.0
        if not candidates:
            return BACKOFF_URGENT if ANY in gaps else POLL
        soonest = min(self._backoff(candidate).until for candidate in candidates)
        return min(max(soonest - time.monotonic(), 0.02), POLL)

    async def _known(self) -> peers.PeerInfo | None:
        """The peer. Discovery is asked when it did not know it, or has been silent about it for a while."""
        now = time.monotonic()
        if self._info is None or now - self._known_at >= POLL:
            try:
                self._info = await self.host.resolve(self.peer, fresh=False, traceparent=self.traceparent)
                self._stranger_since = None
            except UnknownPeer:
                self._info = None
                if self._stranger_since is None:
                    self._stranger_since = now
            self._known_at = now
        return self._info

    async def _renew(self) -> None:
        """Others may know the peer better than we do. What is new reaches us like every change, and pokes us."""
        await self.host.known(self.peer, fresh=True)
        for name in filter(self._is_stranger, self._suggested):
            await self.host.known(name)

    def _is_stranger(self, relay: str) -> bool:
        return self.host.relays.relay_info(relay) is None

    def _backoff(self, candidate: Candidate) -> Backoff:
        return self._backoffs.setdefault(candidate.where, Backoff())

    def _candidates(self, info: peers.PeerInfo | None, gaps: set[str]) -> list[Candidate]:
        """Ways that would fill the gaps, best first."""
        pairing = self.pairing
        in_use = set()
        if pairing is not None:
            # A second link over the same relay shares its fate; it is worth having only when there is nothing else.
            in_use = {
                link.relay
                for link in pairing.session.links
                if not link.closing and (ANY not in gaps or link.suspect_since is None)
            }
        found = [
            candidate
            for candidate in find(self.host.relays, self.peer, info, self.host.use(pairing), self._suggested)
            if gaps & {ANY, candidate.fills} and not (candidate.relay and candidate.relay in in_use)
        ]
        if len(self._backoffs) > MAX_BACKOFFS:
            for where in self._backoffs.keys() - {candidate.where for candidate in found}:
                del self._backoffs[where]
        return found

    async def _race(self, chosen: list[Candidate], gaps: set[str]) -> None:
        """Tries all, staggered, until one of the gaps is filled (or all paths are lost meanwhile).

        Without any path, whatever failed is tried again after its backoff while the first attempts of the others go
        on: one that hangs until its timeout must not hold up a relay that is back.
        """
        tasks: dict[asyncio.Task[None], Candidate] = {}
        now = time.monotonic()
        for candidate, delay in stagger.delays(chosen, urgent=ANY in gaps):
            delay = max(delay, self._backoff(candidate).until - now)
            tasks[asyncio.create_task(self._attempt(candidate, delay, gaps))] = candidate
        first = set(tasks)
        poked = asyncio.create_task(self._poked.wait())  # once: after that, a look now and then is enough
        try:
            while tasks:
                waiting = {*tasks} if poked.done() else {*tasks, poked}
                done, _ = await asyncio.wait(waiting, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
                ended = {task: tasks.pop(task) for task in tuple(tasks) if task in done}
                first -= ended.keys()
                for attempt in ended:
                    attempt.result()
                still = self._open_gaps()
                if gaps - still or (ANY in still and ANY not in gaps):
                    return
                if ANY in gaps and first:
                    for candidate in ended.values():
                        wait = self._backoff(candidate).until - time.monotonic()
                        tasks[asyncio.create_task(self._attempt(candidate, max(wait, 0.0), gaps))] = candidate
                elif not first:
                    return
        finally:
            for task in (*tasks, poked):
                task.cancel()
            await asyncio.gather(*tasks, poked, return_exceptions=True)

    def _open_gaps(self) -> set[str]:
        """As `_gaps`, while attempts go on."""
        pairing = self.pairing
        if pairing is None:
            return {ANY, BETTER, STANDBY}
        return set() if pairing.ended else missing.left(pairing.session.links, pairing.session.active)

    async def _attempt(self, candidate: Candidate, delay: float, gaps: set[str]) -> None:
        await asyncio.sleep(delay)
        backoff, urgent = self._backoff(candidate), ANY in gaps
        try:
            pairing = await self._linking.link(candidate, self.traceparent, urgent=urgent)
        except Exception as error:
            if not isinstance(error, LinkFailed | OSError):
                log.error("attempt failed", extra={"peer": self.peer, "error": repr(error)}, exc_info=error)
            self._failed(candidate, backoff, error, urgent=urgent)
            return
        if pairing is not None:
            self._gap_since.pop(ANY, None)  # from now on it is the new link's to close
            backoff.succeed(time.monotonic())
            self.failure = ""
            if self.pairing is None:
                self.adopt(pairing)  # else ours has ended, and the new session has a keeper of its own

    def _failed(self, candidate: Candidate, backoff: Backoff, error: Exception, *, urgent: bool) -> None:
        text = str(error) or repr(error)
        if text != backoff.why:
            log.info("no link", extra={"peer": self.peer, "path": candidate.where, "error": text})
        least = 0.0
        if isinstance(error, RelayRefused):
            least = error.retry_after
            self._suggested = error.alternatives
            self._fresh_next = self._fresh_next or any(map(self._is_stranger, self._suggested))
        backoff.fail(time.monotonic(), text, BACKOFF_URGENT if urgent else BACKOFF_CALM, least)
        self.failure = text
