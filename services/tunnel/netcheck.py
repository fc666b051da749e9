"""What lies between this node and the others: asks the relays what they see, and whether they get in.

1. A short control connection to every relay, in each address family: who answers, how far it is, what it sees.
2. A fresh local port that sends to one relay only. Relays to which it has sent nothing are asked to come in through
   the outside address that the first one saw, and the first one is asked to come in from another port: the filtering.
   Then the port sends to other relays, too, and what they see is compared: the mapping. A fresh port, because the
   listen port's long-lived connections have opened NATs for it already.
3. Beside that, relays are asked to connect to the listen port: can it be reached?
4. A connection to the fresh port's own outside address: hairpin.

Whatever was found out when the time is over is told; the rest is unknown, with the reason.
"""

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterable

from services.runtime.core.proof import MAGIC, TOKEN_LENGTH
from services.runtime.identity import Identity
from services.tunnel import dialling
from services.tunnel.arrivals import Arrivals, FreshPort
from services.tunnel.config import Settings
from services.tunnel.core import natkind
from services.tunnel.core.natkind import Attempt, Endpoint, Sighting
from services.tunnel.errors import LinkFailed
from services.tunnel.netreport import CheckedAddress, CheckedRelay, Report
from services.tunnel.peers import Discovery, OwnAddress
from services.tunnel.portmap.mapper import PortMapping
from services.tunnel.relay_contact import FAILURES, RelayContact
from services.tunnel.relays import RelayPool

START = 3.0
"""Seconds in which discovery tells whom it knows."""
CHECK_TIMEOUT = 10.0
"""Seconds for all of it. With a dead relay and a NAT that swallows what it does not want it takes about 7."""
CONTACT_TIMEOUT = 3.0
"""Seconds for a relay to answer: one repetition of the SYN (1 s) and the handshake fit."""
ARRIVAL_TIMEOUT = 0.5
"""Seconds for a token when the relay has already said that it was sent: it may come after that word."""
HAIRPIN_TIMEOUT = 1.5
MAX_RELAYS = 8
"""Relays asked, the configured ones first."""
MAX_ADDRESSES = 4
"""Addresses of one relay and family that are tried."""
ASKED = 2
"""Relays asked for each thing."""


class NetCheck:
    """Runs one check at a time; who asks meanwhile gets the same report."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        discovery: Discovery,
        relays: RelayPool,
        arrivals: Arrivals,
        mapping: Callable[[], PortMapping],
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._discovery = discovery
        self._relays = relays
        self._arrivals = arrivals
        self._mapping = mapping
        self._running: asyncio.Task[Report] | None = None

    async def run(self) -> Report:
        """The report, after CHECK_TIMEOUT and a little at most."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run(), name="netcheck")
        return await asyncio.shield(self._running)

    async def close(self) -> None:
        """Ends a check that is under way."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> Report:
        began = time.monotonic()
        report = Report(self._settings.node_name, port_mapping=self._mapping())
        check = _Check(self._settings, self._identity, self._relays, self._arrivals, report)
        self._arrivals.clear()
        self._arrivals.wanted = True
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await self._acquainted()
                own = await self._discovery.own_addresses()
                if own is None:
                    report.notes.append("discovery does not answer: this node's addresses are known only in part")
                await check.run(own or [])
        except TimeoutError:
            report.notes.append(f"not all could be found out within {CHECK_TIMEOUT:g} s")
        finally:
            self._arrivals.wanted = False
            self._arrivals.clear()
            await check.close()
        report.conclude()
        report.took = time.monotonic() - began
        return report

    async def _acquainted(self) -> None:
        """A node that just started knows no relay yet."""
        try:
            async with asyncio.timeout(START):
                await self._discovery.synced.wait()
        except TimeoutError:
            pass


class _Check:
    """One check: its open connections and its report."""

    def __init__(
        self, settings: Settings, identity: Identity, relays: RelayPool, arrivals: Arrivals, report: Report
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._relays = relays
        self._arrivals = arrivals
        self._report = report
        self._open: list[RelayContact] = []

    async def close(self) -> None:
        await asyncio.gather(*(contact.close() for contact in self._open), return_exceptions=True)

    async def run(self, own: list[OwnAddress]) -> None:
        """Everything, into the report."""
        contacts = await self._contact_all()
        await asyncio.gather(self._look_at_a_port(contacts), self._try_listen_port(contacts, own))

    # ---------------------------------------------------------------- 1. the relays

    async def _contact_all(self) -> list[RelayContact]:
        """Contacts to those that answer, the outermost first, then the nearest."""
        found = await asyncio.gather(
            *(
                self._contact(name, addresses)
                for name in self._relays.known()[:MAX_RELAYS]
                for addresses in _by_family(self._addresses(name))
            )
        )
        answered = [(contact, rtt) for contact, rtt in (it for it in found if it is not None)]
        if not found:
            self._report.notes.append("no relay is known: name some in modules.edgeTunnel.relayNodes")
        answered.sort(key=lambda it: (-it[0].sighting.outside, it[1]))
        return [contact for contact, _ in answered]

    def _addresses(self, name: str) -> tuple[Endpoint, ...]:
        info = self._relays.relay_info(name)
        return info.relay_addresses if info is not None else ()

    async def _contact(self, name: str, addresses: list[Endpoint]) -> tuple[RelayContact, float] | None:
        client = self._relays.clients.get(name)
        checked = CheckedRelay(name, natkind.show(addresses[0]), reserved=client is not None and client.reserved)
        self._report.relays.append(checked)
        try:
            contact = await self._open_contact(name, await _answering(addresses, self._settings.listen_address))
            checked.address = natkind.show(contact.address)
            checked.observed = natkind.show(contact.sighting.observed)
            checked.rtt = await contact.round_trip()
        except FAILURES as error:
            checked.error = str(error) or f"no answer within {CONTACT_TIMEOUT:g} s"
            return None
        return contact, checked.rtt

    async def _open_contact(self, relay: str, address: Endpoint, port: int = 0) -> RelayContact:
        contact = await RelayContact.open(self._identity, self._settings, relay, address, port, timeout=CONTACT_TIMEOUT)
        self._open.append(contact)
        return contact

    # ---------------------------------------------------------------- 2. a fresh port

    async def _look_at_a_port(self, contacts: list[RelayContact]) -> None:
        if not contacts:
            return
        # IPv4 where there is any: that is where NATs are.
        family = _family(next((it for it in contacts if it.address[0].count(".") == 3), contacts[0]).address)
        contacts = [contact for contact in contacts if _family(contact.address) == family]
        far = contacts[0].sighting.outside
        contacts = [contact for contact in contacts if contact.sighting.outside == far]
        first, *others = contacts
        async with contextlib.AsyncExitStack() as stack:
            fresh = [FreshPort(self._arrivals, self._settings.listen_address, family) for _ in range(2)]
            for port in fresh:
                await stack.enter_async_context(port)
            port, untouched = fresh
            try:
                seen = await self._open_contact(first.relay, first.address, port.number)
            except FAILURES as error:
                self._report.notes.append(f"no second connection to {first.relay}: {error}")
                return
            self._report.sightings.append(seen.sighting)
            outside = seen.sighting.observed
            attempts = [self._come_in(first, outside, stranger=False)]
            # To a NAT a relay at an address that the port has sent to is no stranger, whatever its name.
            strangers = [it for it in others if it.address[0] != first.address[0]][:ASKED]
            attempts += [self._come_in(contact, outside, stranger=True) for contact in strangers]
            if not strangers and not seen.sighting.translated:
                # Without translation no mapping has to be made first: even the only relay is a stranger to a port
                # that has never sent anything.
                attempts.append(self._come_in(first, (outside[0], untouched.number), stranger=True))
            self._report.attempts += await asyncio.gather(*attempts)
            await asyncio.gather(*(self._sight(contact, port.number) for contact in _apart(first, others)))
            await self._hairpin(seen.sighting)

    async def _sight(self, contact: RelayContact, port: int) -> None:
        with contextlib.suppress(*FAILURES):
            again = await self._open_contact(contact.relay, contact.address, port)
            self._report.sightings.append(again.sighting)

    async def _come_in(self, contact: RelayContact, target: Endpoint, *, stranger: bool) -> Attempt:
        arrived, detail = await self._dialled(contact, target)
        return Attempt(contact.relay, stranger, arrived, detail)

    async def _dialled(self, contact: RelayContact, target: Endpoint) -> tuple[bool | None, str]:
        """Whether the relay gets through to this node at `target`; None when it could not try."""
        seen = contact.sighting.observed[0]
        if seen != target[0]:
            return None, f"it sees this node as {seen}, and would not dial {target[0]}"
        try:
            answer = await contact.dial_back(target[1])
        except FAILURES as error:
            return None, str(error)
        if answer.outcome == "connected":
            if await self._arrivals.wait(answer.token, ARRIVAL_TIMEOUT):
                return True, "connected"
            return False, "another machine answers there"
        if answer.outcome == "unreachable":
            return None, "the relay has no route there"
        return False, {"silence": "no answer", "reset": "answered by a reset"}.get(answer.outcome, answer.outcome)

    # ---------------------------------------------------------------- 3. the listen port

    async def _try_listen_port(self, contacts: list[RelayContact], own: list[OwnAddress]) -> None:
        port = self._settings.listen_port
        if not port:
            self._report.notes.append("this node does not listen (listenPort is 0): nobody can dial it")
            return
        sources = {(address.ip, address.port or port): address.source for address in own}
        targets: dict[Endpoint, str] = {}
        for contact in contacts:
            ip = contact.sighting.observed[0]
            targets.setdefault((ip, port), sources.get((ip, port), "observed"))
        if mapped := self._report.port_mapping.external:
            sources[mapped] = targets[mapped] = "mapped"
        for endpoint in self._relays.observed():
            targets.setdefault(endpoint, sources.get(endpoint, "observed"))
        tried = list(targets.items())[: 2 * ASKED]
        self._report.addresses += await asyncio.gather(
            *(self._reach(endpoint, source, contacts) for endpoint, source in tried)
        )
        for endpoint, source in sources.items():
            if endpoint not in targets:
                why = (
                    "only nodes in the same network can reach it"
                    if natkind.is_inside(endpoint[0])
                    else "no relay sees this node under it, and none dials another address"
                )
                self._report.addresses.append(CheckedAddress(natkind.show(endpoint), source, None, why))

    async def _reach(self, target: Endpoint, source: str, contacts: list[RelayContact]) -> CheckedAddress:
        checked = CheckedAddress(natkind.show(target), source, None, "no relay sees this node under it")
        asked = [contact for contact in contacts if contact.sighting.observed[0] == target[0]]
        # A relay to which the listen port has sent nothing knows better whether strangers get in.
        asked.sort(key=lambda contact: contact.relay in self._relays.clients)
        found = await asyncio.gather(*(self._dialled(contact, target) for contact in asked[:ASKED]))
        for contact, (arrived, detail) in zip(asked, found, strict=False):
            if arrived:
                checked.reachable, checked.why = True, f"{contact.relay} got in"
                return checked
            if arrived is False or checked.reachable is None:
                checked.reachable, checked.why = arrived, f"{contact.relay} did not get in: {detail}"
        return checked

    # ---------------------------------------------------------------- 4. hairpin

    async def _hairpin(self, seen: Sighting) -> None:
        report = self._report
        if not seen.translated:
            report.hairpin_why = "not needed: addresses are not translated"
            return
        token = secrets.token_bytes(TOKEN_LENGTH)
        try:
            sock = await dialling.connect(
                *seen.observed, source=(self._settings.listen_address, 0), timeout=HAIRPIN_TIMEOUT
            )
            with sock:
                await asyncio.get_running_loop().sock_sendall(sock, MAGIC + token)
                report.hairpin = await self._arrivals.wait(token, ARRIVAL_TIMEOUT)
            report.hairpin_why = "" if report.hairpin else f"another machine answers at {natkind.show(seen.observed)}"
        except (LinkFailed, OSError) as error:
            report.hairpin, report.hairpin_why = False, str(error)


def _by_family(addresses: Iterable[Endpoint]) -> list[list[Endpoint]]:
    families: dict[int, list[Endpoint]] = {}
    for address in addresses:
        families.setdefault(_family(address), []).append(address)
    return [families[family][:MAX_ADDRESSES] for family in sorted(families)]


def _family(address: Endpoint) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def _apart(first: RelayContact, others: list[RelayContact]) -> list[RelayContact]:
    """Up to ASKED others whose sight adds something: relays at another address first."""
    return sorted(others, key=lambda contact: contact.address[0] == first.address[0])[:ASKED]


async def _answering(addresses: list[Endpoint], listen_address: str) -> Endpoint:
    """The first that accepts a TCP connection; LinkFailed of the first when none does."""
    if len(addresses) == 1:
        return addresses[0]

    async def knock(address: Endpoint) -> Endpoint:
        sock = await dialling.connect(*address, source=(listen_address, 0), timeout=CONTACT_TIMEOUT)
        sock.close()
        return address

    tasks = [asyncio.create_task(knock(address)) for address in addresses]
    try:
        for done in asyncio.as_completed(tasks):
            with contextlib.suppress(LinkFailed):
                return await done
        return await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
