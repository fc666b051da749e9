"""Where two nodes meet: carries out what core/choice.py decides about the relays of sessions.

The session's initiator decides. It opens a link over the relay it chose (make-before-break), and tells the other side in
a note over the session, `{"relay": NAME}`; from then on both prefer links over that relay, and the others are standbys.
"""

import asyncio
import logging
import random
import time
from dataclasses import replace
from weakref import WeakKeyDictionary

from services.tunnel.core import choice
from services.tunnel.core.choice import Decision, Nearness, Option, Pace
from services.tunnel.core.link import RELAYED, Link
from services.tunnel.errors import LinkFailed
from services.tunnel.joining import join
from services.tunnel.life import Life
from services.tunnel.pairing import Pairing
from services.tunnel.relays import RelayPool
from services.tunnel.sessions import Sessions

log = logging.getLogger("causeway.tunnel")

LOOK_EVERY = 2.0
"""Seconds between looks at one session."""
REPEAT_EVERY = 30.0
"""Seconds after which the word is said again: a note that is lost with its link is not repeated by the session."""
AGAIN_AFTER = 30.0
"""Seconds after a circuit that was not to be had."""

CONFIRMED_WITHIN = 1.0
"""Seconds after which a link that was joined is usable; a link is not retired as surplus before (core/carrier)."""


class Meeting:
    """`tick` every second."""

    def __init__(self, sessions: Sessions, relays: RelayPool) -> None:
        self._sessions = sessions
        self._relays = relays
        self._rng = random.Random()
        self._pace = Pace(self._rng)
        self._decisions: WeakKeyDictionary[Life, Decision] = WeakKeyDictionary()
        self._said: WeakKeyDictionary[Life, tuple[str, float]] = WeakKeyDictionary()
        self._not_before: WeakKeyDictionary[Life, float] = WeakKeyDictionary()
        self._measured: WeakKeyDictionary[Life, dict[str, Nearness]] = WeakKeyDictionary()
        """What links over relays showed: truer than what two nodes say of their relays."""
        self._tasks: set[asyncio.Task[None]] = set()

    def tick(self, now: float) -> None:
        self._pace.see(self._relays.serving(), now)
        relayed = [pairing for pairing in self._sessions.pairings.values() if _is_relayed(pairing)]
        for pairing in relayed:
            if pairing.keys.initiator and now >= self._not_before.get(pairing.life, 0.0):
                self._not_before[pairing.life] = now + LOOK_EVERY
                self._look(pairing, now)

    async def close(self) -> None:
        """Breaks off what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def why(self, pairing: Pairing) -> Decision | None:
        """The last decision about a session's relay; None: it is the other side's, or none was needed."""
        return self._decisions.get(pairing.life)

    def _look(self, pairing: Pairing, now: float) -> None:
        active = pairing.session.active
        assert active is not None
        options = self._options(pairing, now)
        current = "" if active.draining else active.relay
        decision = choice.decide(options, current, self._pair(pairing), self._rng.random())
        if decision is None:
            return
        self._decisions[pairing.life] = decision
        if decision.relay == active.relay or any(
            link.relay == decision.relay and link.usable for link in pairing.session.links
        ):
            moves = decision.relay != active.relay
            if not moves or self._pace.may(decision.relay, now):
                self._agree(pairing, decision, now, moves=moves)
            if not moves:
                self._spread(pairing, active.relay, options, now)
        elif self._pace.may(decision.relay, now):
            self._begin(pairing, decision.relay, None, now)

    def _spread(self, pairing: Pairing, active: str, options: list[Option], now: float) -> None:
        """Moves the standby to a relay that would carry less if the active one died. When a relay died all standbys
        went to the others; without this they would stay there, and the next to die would send everybody to one."""
        links = [link for link in pairing.session.links if link.usable and link.relay and not link.draining]
        if len(links) != 2 or len({link.relay for link in links}) != 2:
            return
        old = next(link for link in links if link.relay != active)
        used = self._sessions.use(pairing).sessions
        options = [replace(it, used=used.get(it.relay, 0)) for it in options]
        chosen = choice.standby_of(options, active, old.relay, self._pair(pairing))
        if chosen not in ("", old.relay) and self._pace.may(chosen, now):
            self._begin(pairing, chosen, old, now)

    def _begin(self, pairing: Pairing, relay: str, old: Link | None, now: float) -> None:
        self._not_before[pairing.life] = now + AGAIN_AFTER
        task = asyncio.create_task(self._move(pairing, relay, old), name=f"move {pairing.peer}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _agree(self, pairing: Pairing, decision: Decision, now: float, *, moves: bool) -> None:
        """Tells the other side, and does it here."""
        said, when = self._said.get(pairing.life, ("", float("-inf")))
        if said != decision.relay or now - when >= REPEAT_EVERY:
            self._said[pairing.life] = (decision.relay, now)
            pairing.session.note(choice.encode_word(decision.relay))
        pairing.apply(pairing.session.agree(decision.relay, decision.cause))
        pairing.mark()
        if moves:
            log.info("relay changed", extra={"peer": pairing.peer, "relay": decision.relay, "reason": decision.why})

    async def _move(self, pairing: Pairing, relay: str, old: Link | None) -> None:
        """One more link, over the relay that was chosen. With `old`, a standby, it takes that one's place; else it is
        agreed on in a later look, when it is usable."""
        try:
            sock = await self._relays.circuit(relay, pairing.peer)
            try:
                joined = await join(pairing, sock, RELAYED, relay)
            except BaseException:
                sock.close()
                raise
            if not joined:
                sock.close()
                raise LinkFailed("the session is not known there")
        except (LinkFailed, OSError, TimeoutError, EOFError) as error:
            log.info("relay not changed", extra={"peer": pairing.peer, "relay": relay, "error": str(error)})
            return
        if old is not None:
            await asyncio.sleep(CONFIRMED_WITHIN)
            session = pairing.session
            usable = any(link.relay == relay and link.usable for link in session.links)
            if usable and old in session.links and old is not session.active:
                session.retire(old)
                pairing.mark()
                log.info("standby changed", extra={"peer": pairing.peer, "relay": relay, "before": old.relay})
        self._not_before[pairing.life] = time.monotonic() + 0.5

    # ---------------------------------------------------------------- what there is to choose from

    def _pair(self, pairing: Pairing) -> frozenset[str]:
        return frozenset((self._sessions.settings.node_name, pairing.peer))

    def _options(self, pairing: Pairing, now: float) -> list[Option]:
        """Relays at which the peer says that it can be reached, and those over which it is."""
        measured, used = self._measure(pairing, now), self._sessions.use(None).sessions
        found = {it.relay: it for it in self._relays.options(pairing.peer, now)}
        for link in pairing.session.links:
            if link.usable and link.relay and not link.draining:
                found.setdefault(link.relay, Option(link.relay, None, self._relays.load(link.relay)))
        return [replace(it, rtt=measured.get(name, it.rtt), used=used.get(name, 0)) for name, it in found.items()]

    def _measure(self, pairing: Pairing, now: float) -> dict[str, float]:
        """Round trips between both nodes through relays that have or had links lately."""
        seen = self._measured.setdefault(pairing.life, {})
        for link in pairing.session.links:
            if link.relay and link.usable and (rtt := link.path_rtt.smoothed) is not None:
                seen.setdefault(link.relay, Nearness()).sample(rtt, now)
        best = {name: nearness.best(now) for name, nearness in seen.items()}
        for name in [name for name, rtt in best.items() if rtt is None]:
            del seen[name]
        return {name: rtt for name, rtt in best.items() if rtt is not None}


def _is_relayed(pairing: Pairing) -> bool:
    active = pairing.session.active
    return active is not None and active.kind == RELAYED
