"""Streams that other nodes open towards this one: judged, dialled, handed to the tunnel."""

import asyncio
import socket
import time
from collections.abc import Mapping
from functools import partial
from logging import DEBUG, WARNING, Logger

from services.proxy import errors, peers
from services.proxy.attach import AttachSocket
from services.proxy.core.catalog import Network
from services.proxy.core.patience import CONNECT
from services.proxy.core.policy import Policy
from services.proxy.counters import Counters
from services.proxy.dialer import Dialer
from services.proxy.peers import Offer
from services.runtime import telemetry
from services.runtime.core.seldom import Seldom

RESOLVE_TIMEOUT = 5.0  # s for a name of allowedTargets
TELL_EVERY, TELL_MOST = 60.0, 100  # s between two lines in the log on one node and target; lines in that time
MAX_RESOLVING = 32  # names looked up at once: each blocks a thread of the pool while DNS is broken


class Inbound:
    """Answers offers: `serve` never waits and never raises."""

    def __init__(self, policy: Policy, attach: AttachSocket, dialer: Dialer, counters: Counters, log: Logger) -> None:
        self._policy = policy
        self._attach = attach
        self._dialer = dialer
        self._counters = counters
        self._log = log
        self._seldom = Seldom(TELL_EVERY, TELL_MOST)
        self._resolving: set[asyncio.Task[None]] = set()
        self.patience: Mapping[str, float] = {}
        """Seconds to connect to endpoints, by the service's key; set by the owner."""

    def serve(self, offer: Offer) -> None:
        span = telemetry.start_span(
            "proxy.dial", parent=offer.traceparent, peer=offer.peer, target=offer.address, service=offer.service
        )
        if offer.network is None:
            self._answer(offer, "", span, None, errors.DENIED, "expected a target over TCP or UDP")
            return
        verdict = self._policy.judge(offer.network, offer.address, offer.peer)
        done = partial(self._answer, offer, verdict.service, span)
        if not verdict.allowed:
            done(None, errors.DENIED, verdict.why)
        elif not verdict.resolve:
            seconds = self.patience.get(verdict.service, CONNECT)
            self._dialer.dial(offer.network, verdict.host, verdict.port, done, seconds)
        elif len(self._resolving) >= MAX_RESOLVING:
            done(None, errors.LIMIT, f"{MAX_RESOLVING} names are being looked up already")
        else:
            task = asyncio.create_task(self._resolve(offer.network, verdict.host, verdict.port, done))
            self._resolving.add(task)
            task.add_done_callback(self._resolving.discard)

    async def close(self) -> None:
        """Stops looking up names."""
        tasks = list(self._resolving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _resolve(self, network: Network, name: str, port: int, done: "partial[None]") -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT):
                found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except TimeoutError:
            done(None, errors.UNREACHABLE, f"looking up {name}: no answer within {RESOLVE_TIMEOUT:g} s")
        except (OSError, UnicodeError) as error:
            done(None, errors.UNREACHABLE, f"looking up {name}: {error}")
        else:
            self._dialer.dial(network, str(found[0][4][0]), port, done)

    def _answer(
        self, offer: Offer, service: str, span: telemetry.Span, sock: socket.socket | None, reason: str, why: str
    ) -> None:
        if sock is not None:
            self._counters.dialled[service] += 1
            self._attach.give(peers.accept(offer.token, service), sock)
            span.end()
            return
        self._counters.refused_inbound[reason] += 1
        denied = reason == errors.DENIED and self._seldom.first((offer.peer, offer.address), time.monotonic())
        self._log.log(
            WARNING if denied else DEBUG,
            "refused a stream",
            extra={"peer": offer.peer, "target": offer.address, "reason": reason, "error": why},
        )
        self._attach.give(peers.refuse(offer.token, reason, why), None)
        span.end(error=why)
