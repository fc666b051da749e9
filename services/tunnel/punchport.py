"""The local port from which an attempt to punch is made, and where it can be seen from outside.

The first attempt of a session takes the listen port: its mapping is known, since relays see control connections come
from it. Every later one takes a fresh port, which a short control connection shows to a relay. What a former punched
link left is in nobody's way then. The lab showed what that is, after a NAT had cut such a link without a word: for
15 s (TCP_USER_TIMEOUT) the kernel holds on to the connection that it cannot close, and `connect` from the same port to
the same peer is "Cannot assign requested address"; and for up to 5 minutes (Linux' conntrack) a router that was told
nothing keeps the flow as established, and no SYN begins another one between the same ports. A fresh port also has a
mapping of its own, as old as itself, so a new link can be made while the old one still serves.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from services.runtime.identity import Identity
from services.tunnel import dialling
from services.tunnel.config import Settings
from services.tunnel.core.punch import Address, usable
from services.tunnel.relay_contact import FAILURES, RelayContact
from services.tunnel.relays import RelayPool

SEEN_WITHIN = 2.0
"""Seconds for a relay to see a fresh port: the peer waits 3 s for a word, and this side's is only part of it."""
ASKED = 2
"""Relays that are asked at once; the first that answers will do."""


@dataclass
class PunchPort:
    """`close` it when the attempt is over; what was connected or accepted by then stays."""

    number: int
    addresses: tuple[Address, ...]
    """Where it can be seen from outside."""
    _held: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def close(self) -> None:
        """Gives the port up."""
        await self._held.aclose()


def own_addresses(settings: Settings, port: int, observed: list[Address]) -> tuple[Address, ...]:
    """Where a local port may be seen: relays saw some, IPv6 is often not translated."""
    ipv6 = dialling.source_of(socket.AF_INET6, settings.listen_address)
    return (*observed, *([(ipv6, port)] if ipv6 else []))


class FreshPorts:
    """Opens ports that nobody has used yet."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        relays: RelayPool,
        accept: Callable[[socket.socket], Coroutine[Any, Any, None]],
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._relays = relays
        self._accept = accept

    async def open(self) -> PunchPort | None:
        """A port that listens, and whose mapping is held open; None when nobody can tell where it is seen."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                listener = stack.enter_context(dialling.listener(self._settings.listen_address, 0))
            except OSError:
                return None
            number = int(listener.getsockname()[1])
            accepting = asyncio.create_task(self._accept(listener), name=f"punch port {number}")
            stack.push_async_callback(_end, accepting)
            contact = await self._see(number)
            if contact is not None:
                stack.push_async_callback(contact.close)
            addresses = own_addresses(self._settings, number, [contact.sighting.observed] if contact else [])
            return PunchPort(number, addresses, stack.pop_all()) if addresses else None

    async def _see(self, port: int) -> RelayContact | None:
        """The first contact from this port that succeeds."""
        tasks = {
            asyncio.create_task(self._contact(name, address, port), name=f"see {port} from {name}")
            for name, address in self._relays.addresses_in_use()[:ASKED]
        }
        found: RelayContact | None = None
        try:
            while tasks and found is None:
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    contact = task.result()
                    if contact is not None and found is not None:
                        await contact.close()
                    found = found or contact
        finally:
            for task in tasks:
                task.cancel()
            for late in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(late, RelayContact):
                    await late.close()
        return found

    async def _contact(self, name: str, address: Address, port: int) -> RelayContact | None:
        try:
            contact = await RelayContact.open(self._identity, self._settings, name, address, port, SEEN_WITHIN)
        except FAILURES:
            return None
        if usable([contact.sighting.observed]) and contact.sighting.observed != address:
            return contact
        await contact.close()
        return None


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
