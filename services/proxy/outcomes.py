"""What is learnt from what becomes of clients: which backends are well, how many connections they have, how far nodes are."""

import asyncio
import time
from collections.abc import Mapping
from logging import Logger

from services.proxy import errors
from services.proxy.core.health import TRIAL
from services.proxy.core.silence import WAIT
from services.proxy.counters import Counters
from services.proxy.peers import Outcome
from services.proxy.route import Use

RELAYED = 30.0  # s for which a node is taken to be reached through a relay: a path is soon upgraded, if it can be
MAX_WATCHED = 65_536  # connections and flows of which the tunnel is to tell how they end; then no more flows
REMEMBER = 600.0  # s for which the round trip to a node with which there is no session any more counts, at most


class Outcomes:
    """Of one proxy's clients."""

    def __init__(self, counters: Counters, log: Logger) -> None:
        self._counters = counters
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._watched: dict[int, Use] = {}
        self.rtts: dict[str, float] = {}  # s, by node
        self.relayed: dict[str, float] = {}  # nodes, and until when that is believed
        self._forgot_at = self._loop.time()

    @property
    def full(self) -> bool:
        """No more flows can be watched; of connections the tunnel has no more than it has descriptors."""
        return len(self._watched) >= MAX_WATCHED

    def watch(self, number: int, use: Use) -> None:
        """The tunnel will tell how it ends, under that number."""
        self._watched[number] = use

    def forget(self, number: int) -> None:
        """The tunnel will not."""
        use = self._watched.pop(number, None)
        if use is not None:
            use.end()

    def lost(self) -> None:
        """The tunnel is gone, with all that it had."""
        for number, use in list(self._watched.items()):
            use.judged = True  # no answer will be heard of, whether it comes or not
            self.forget(number)

    def heard(self, outcome: Outcome) -> bool:
        """The tunnel's word: a flow was accepted, or answered, or something is over, perhaps because the backend refused it.
        False: on nothing that is watched."""
        use = self._watched.get(outcome.number)
        if use is None:
            return False
        if outcome.answered:
            self.answered(use)
            return True
        if outcome.accepted:
            self.reached(use, outcome)
            self.expect(use)
            return True
        self.forget(outcome.number)
        if outcome.reason:
            self._counters.refused_local[use.route.service, outcome.reason] += 1
            self.failed(use, outcome.reason, outcome.why)
        return True

    def measured(self, rtts: Mapping[str, float]) -> None:
        """Round trips to nodes, in seconds, as the paths in use now have them."""
        now = self._loop.time()
        if now - self._forgot_at > REMEMBER:
            self.rtts.clear()
            self._forgot_at = now
        self.rtts.update(rtts)

    def reached(self, use: Use, outcome: Outcome) -> None:
        """By which path its node was."""
        node = use.backend.node
        if outcome.rtt:
            self.rtts[node] = outcome.rtt
        if outcome.relayed:
            self.relayed[node] = time.monotonic() + RELAYED
        else:
            self.relayed.pop(node, None)

    def worked(self, use: Use) -> None:
        """The backend accepted it."""
        use.route.balancer.health.worked(use.backend)

    def failed(self, use: Use, reason: str, why: str) -> None:
        """It was not accepted, or not served."""
        use.judged = True
        route, backend = use.route, use.backend
        if reason == errors.LIMIT or len(route) == 1:
            return  # nobody has asked the backend; there is no other
        lost = reason in (errors.NO_PATH, errors.UNKNOWN_NODE)
        if route.balancer.health.failed(backend.node if lost else backend, time.monotonic()):
            self._counters.ejected[route.service] += 1
            self._log.warning(
                "a node cannot be reached, leaving its backends out for a while"
                if lost
                else "a backend fails, leaving it out for a while",
                extra={"target": route.label, "peer": backend.node, "address": backend.address, "error": why},
            )

    def expect(self, use: Use) -> None:
        """An answer to a flow, which has no handshake. Where nobody ever answers, that it was not refused for a while is
        all that one hears of a backend that is well."""
        balancer = use.route.balancer
        if balancer.silence:
            self._loop.call_later(WAIT, self._not_answered, use, time.monotonic())
        elif balancer.health:
            self._loop.call_later(TRIAL, self._not_failed, use)

    def answered(self, use: Use) -> None:
        """The first datagram of a flow came back."""
        use.judged = True
        use.route.balancer.silence.answered(use.backend, time.monotonic())

    def _not_failed(self, use: Use) -> None:
        if not use.judged and not use.route.balancer.silence:
            self.worked(use)

    def _not_answered(self, use: Use, began: float) -> None:
        route, backend = use.route, use.backend
        if use.judged or len(route) == 1:
            return
        if route.balancer.silence.unanswered(backend, began, time.monotonic()):
            self._counters.ejected[route.service] += 1
            self._log.warning(
                "a backend does not answer, leaving it out for a while",
                extra={"target": route.label, "peer": backend.node, "address": backend.address},
            )
