"""Having a port of this node dialled from outside: by nodes that it can call, and by those who offer.

One round at a time, begun by the component whose port it is. Neighbours on one of this node's own networks are
not asked: that they get through says nothing of others.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from time import monotonic

from services.runtime.core.private import private

from .core.backoff import Backoff
from .core.contacts import Contact
from .core.errors import DiscoveryError
from .core.model import AddressSource, Source
from .core.round import Regulars, Round, Wish
from .core.vantage import WORK, DialOutcome
from .directory import Directory, contact_of
from .interfaces import Interface
from .peers import NodeClient, Refused
from .probe import Unreachable
from .wire import Report

PING = 3.0
"""Seconds for a vantage to answer at all."""
TIMEOUT = 12.0
"""Seconds for a call that has us dialled: 8.5 for the dial."""
ENOUGH, MOST = 3, 8
"""Vantages that are called in a round, and how many are tried for it."""
AGAIN = (2.0, 300.0)
"""Seconds until those who did not dial are called again, at first and at most."""
MAX_ADDRESSES = 3
"""Addresses that each is asked to dial beside the one from which it sees us."""
MAX_REPORTS = 4
"""Reports taken from one call; an honest caller has one."""
QUEUE = 64


@dataclass(frozen=True, slots=True)
class Addresses:
    """This node's addresses, configured ones and those of its interfaces."""

    ips: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A vantage dialled `ip` with `token`."""

    vantage: str
    ip: str
    token: bytes
    outcome: DialOutcome


class Prober:
    """`interfaces` is set by whoever watches them."""

    def __init__(self, directory: Directory, client: NodeClient, rng: random.Random) -> None:
        self._directory = directory
        self._client = client
        self._rng = rng
        self._regulars = Regulars(monotonic())
        self._round: Round | None = None
        self._events: asyncio.Queue[Addresses | Outcome | None] = asyncio.Queue(QUEUE)
        self.interfaces: tuple[Interface, ...] = ()

    async def probe(self, port: int, tokens: list[bytes], pace: float) -> AsyncGenerator[Addresses | Outcome, None]:
        """A round, until it is closed or a later one begins."""
        self._tell(None)
        self._round = round = Round(port, tokens, pace)  # noqa: A001
        events: asyncio.Queue[Addresses | Outcome | None] = asyncio.Queue(QUEUE)
        self._events = events
        tasks = [
            asyncio.create_task(work, name=f"probe: {name}")
            for name, work in (
                ("addresses", self._watch_addresses()),
                ("ask", self._ask_until_answered(round)),
                ("late", self._watch_late()),
            )
        ]
        try:
            while (event := await events.get()) is not None:
                yield event
        finally:
            if self._round is round:
                self._round = None
            for task in tasks:
                task.cancel()
            for end in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(end, Exception):
                    self._directory.log.error("probing failed", extra={"error": repr(end)}, exc_info=end)

    def offered(self, vantage: str, ip: str, reports: list[Report]) -> tuple[Wish | None, float]:
        """A node that calls from `ip` offers to dial: what it is to dial, and after how many seconds it may come again."""
        for report in reports[:MAX_REPORTS]:
            if self._regulars.report(vantage, report.token):
                self._tell(Outcome(vantage, report.ip, report.token, report.outcome))
        if not ip or self._neighbour(vantage, ip):
            return None, 10.0 if vantage not in self._directory.peers else 600.0
        return self._regulars.come(vantage, self._round, monotonic())

    def close(self) -> None:
        """End the round."""
        self._tell(None)

    def _tell(self, event: Addresses | Outcome | None) -> None:
        if event is None and self._events.full():
            self._events.get_nowait()
        if not self._events.full():
            self._events.put_nowait(event)

    def _near(self, ip: str) -> bool:
        return any(interface.near(ip) for interface in self.interfaces)

    def _neighbour(self, vantage: str, ip: str) -> bool:
        """On one of our own networks with an interface of its own. A router there may have a whole network behind it."""
        peer = self._directory.peers.get(vantage)
        return self._near(ip) and (peer is None or any(address.ip == ip for address in peer.record.addresses))

    def _addresses(self) -> tuple[str, ...]:
        kept = (AddressSource.ADVERTISED, AddressSource.INTERFACE)
        return tuple(address.ip for address in self._directory.record().addresses if address.source in kept)

    async def _watch_addresses(self) -> None:
        told: tuple[str, ...] | None = None
        while True:
            seen = self._directory.own_bell.count
            if (ips := self._addresses()) != told:
                told = ips
                self._tell(Addresses(ips))
            await self._directory.own_bell.wait(seen)

    async def _watch_late(self) -> None:
        told: set[str] = set()
        while True:
            for name in self._regulars.late(monotonic()):
                if name not in told:
                    told.add(name)
                    self._tell(Outcome(name, "", b"", DialOutcome.LOST))
            await asyncio.sleep(min(self._regulars.next_late(monotonic()) or 5.0, 5.0) + 0.1)

    async def _ask_until_answered(self, round: Round) -> None:  # noqa: A002
        """Asks around again while nobody has dialled: those whom this node knows may not serve yet."""
        backoff = Backoff(*AGAIN, self._rng)
        while not await self._ask_around(round):
            await self._directory.back_off(backoff)

    async def _ask_around(self, round: Round) -> int:  # noqa: A002
        """Calls vantages until ENOUGH have dialled; returns how many did."""
        directory = self._directory
        found = {contact.key: contact for contact in directory.contacts()}
        for peer in directory.peers.values():
            if peer.verified and peer.record.discovery_port:
                found.setdefault(peer.record.node_name, contact_of(peer))
        found.pop(directory.settings.node_name, None)
        names = sorted(found)
        answered = 0
        for name in self._rng.sample(names, min(MOST, len(names))):
            if answered < ENOUGH and found[name].endpoints and round.open(name):
                answered += await self._ask(round, found[name])
        return answered

    async def _ask(self, round: Round, contact: Contact) -> bool:  # noqa: A002
        """One vantage: the address from which it sees us, then those that are public. False: it dialled none."""
        seen = ""
        try:
            record, endpoint = await self._client.ping(contact, timeout=PING)
            vantage = self._directory.take(record, Source.LOOKUP, expected=contact.node_name).node_name
            if self._near(endpoint.host) or not round.open(vantage):
                return False
            # From here on it is called where it answered.
            contact = Contact(vantage, (endpoint,))
            public = [ip for ip in self._addresses() if self._worth(ip)][:MAX_ADDRESSES]
            # On loopback a call says nothing of where its caller listens.
            for ip in public if self._directory.settings.loopback else ["", *public]:
                if ip and ip == seen:
                    continue
                if (token := round.take(vantage)) is None:
                    break
                work = bytes(WORK) if ip else b""
                answer = await self._client.dial_back(contact, ip, round.port, token, work, timeout=TIMEOUT)
                seen = seen or answer.ip
                self._tell(Outcome(vantage, answer.ip, token, answer.outcome))
        except (Unreachable, Refused, DiscoveryError) as error:
            extra = {"peer": contact.key, "error": str(error)}
            self._directory.log.debug("not dialled back", extra=extra)
        return bool(seen)

    def _worth(self, ip: str) -> bool:
        parsed = ipaddress.ip_address(ip)
        return self._directory.settings.loopback if parsed.is_loopback else not private(parsed)
