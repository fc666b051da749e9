"""Neighbours in the LAN, by multicast DNS (RFC 6762/6763).

An announcement only says "ask me": name, port, cluster and revision. The record itself is fetched over mutual TLS
and verified, so nobody in the LAN can put words into another's mouth.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.backoff import Backoff
from ..core.contacts import MAX_ENDPOINTS, Contact, Endpoint
from ..core.errors import DiscoveryError
from ..core.model import Source
from ..core.own import LIFETIME, due_in
from ..directory import Directory
from ..interfaces import Interface, addresses, speakers
from ..peers import NodeClient, Refused
from ..probe import Unreachable

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

TYPE = "_causeway._tcp.local."
# Announcements followed at once; a LAN with more is not one.
MAX_NEIGHBOURS = 1024
# Unanswered questions for its details in a row after which an announcement counts as gone.
MAX_SILENT = 10
# Seconds to fetch a record.
TIMEOUT = 3.0
# Seconds between two updates of the own announcement.
GAP = 1.0
# Milliseconds to ask for the details of an announcement.
ASK_MS = 3000
# Seconds the goodbye may take.
GOODBYE = 1.5
# Times that sockets are opened anew for the sake of an interface that does not join in: an IPv6 address cannot be used
# in the first second or two (duplicate address detection, RFC 4862), while a kernel that joins no more than 20 groups
# (igmp_max_memberships) never will.
MAX_REOPENED = 4


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a neighbour's TXT record and addresses say."""

    cluster: str
    instance: str
    node_name: str
    revision: int
    endpoints: tuple[Endpoint, ...]


class Mdns:
    """Announces this node and follows the others."""

    def __init__(self, directory: Directory, client: NodeClient, rng: random.Random) -> None:
        self._directory = directory
        self._client = client
        self._rng = rng
        self._backoff = Backoff(1.0, 30.0, rng)
        self.interfaces: tuple[Interface, ...] = ()
        self._moved = asyncio.Event()
        self._reopened = 0
        self._station: AsyncZeroconf | None = None
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._news: dict[str, asyncio.Event] = {}
        # Announcements heard while as many were followed as may be.
        self._missed: dict[str, None] = {}
        self._problems: dict[str, str] = {}
        self._strangers: set[str] = set()
        # Node names by announcement, of neighbours whose record was verified.
        self._named: dict[str, str] = {}
        self._browser: AsyncServiceBrowser | None = None
        settings = directory.settings
        self._cluster = hashlib.sha256(settings.cluster.encode()).hexdigest()[:16]
        # Unique for each run, so that no name has to be defended and a duplicate node shows as two announcements.
        self._name = f"{settings.node_name[:40]}-{directory.instance_id[:8]}.{TYPE}"
        self._server = f"causeway-{directory.instance_id}.local."

    def use(self, interfaces: tuple[Interface, ...]) -> None:
        """The interfaces to speak on; called again when they change."""
        self.interfaces = interfaces
        self._reopened = 0
        self._moved.set()

    async def run(self) -> None:
        """For ever; with new sockets whenever the interfaces change, since old ones fail silently then."""
        board = self._directory.board
        if not self._directory.settings.mdns:
            board.say("mdns", "off: mdns.enable is false")
            return
        if not self._directory.settings.listen_port:
            board.say("mdns", "off: listenPort is 0, so nobody could ask this node")
            return
        while True:
            await self._moved.wait()
            self._moved.clear()
            leaving = True
            try:
                missing = await self._open()
                board.clear("mdns")
                self._show()
                await self._announce_changes(self._again(missing))
                leaving = False
            except Exception as error:
                # zeroconf raises whatever its sockets raise, and its own.
                text = f"mDNS does not work: {error}; nodes of this LAN are found through relays only"
                board.say("mdns", f"error: {error}")
                if board.warn("mdns", text):
                    self._directory.log.warning(text)
                await self._pause()
            finally:
                await self._shut(goodbye=leaving)

    async def close(self) -> None:
        """End what `run`, which has said goodbye when it was cancelled, leaves behind."""
        followers = list(self._followers.values())
        for task in followers:
            task.cancel()
        await asyncio.gather(*followers, return_exceptions=True)

    # The station: sockets, the own announcement, the browser

    async def _open(self) -> int:
        """Returns how many of the ways to speak are missing; raises when all are."""
        from zeroconf import IPVersion
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

        if not self.interfaces:
            raise OSError("no interface but loopback is up")
        v4, v6 = speakers(self.interfaces)
        version = IPVersion.All if v4 and v6 else IPVersion.V4Only if v4 else IPVersion.V6Only
        station = AsyncZeroconf(interfaces=[*v4, *v6], ip_version=version)
        self._station = station
        await station.zeroconf.async_wait_for_start()
        # zeroconf leaves out what it cannot use, and says so in its own log at most.
        speaking = len(station.zeroconf.engine.senders)
        if not speaking:
            raise OSError(f"none of {len(self.interfaces)} interfaces can be used yet")
        # The name is random: probing for its holder would only cost most of a second.
        await station.async_register_service(self._describe(), cooperating_responders=True)
        self._browser = AsyncServiceBrowser(station.zeroconf, TYPE, handlers=[self._heard])
        return len(v4) + len(v6) - speaking

    def _again(self, missing: int) -> float | None:
        """Seconds after which to open anew, for the sake of `missing` ways to speak; None: no need, or no use."""
        board = self._directory.board
        if not missing:
            self._backoff.reset()
            board.clear("mdns interfaces")
            return None
        if self._reopened < MAX_REOPENED:
            self._reopened += 1
            return self._backoff.next()
        text = f"mDNS: {missing} of {len(self.interfaces)} interfaces do not join in; see net.ipv4.igmp_max_memberships"
        if board.warn("mdns interfaces", text):
            self._directory.log.warning(text)
        return None

    async def _announce_changes(self, limit: float | None) -> None:
        """Keeps the announced revision up to date until the interfaces change, or for `limit` seconds."""
        try:
            async with asyncio.timeout(limit):
                await self._keep_announcing()
        except TimeoutError:
            self._moved.set()

    async def _keep_announcing(self) -> None:
        directory = self._directory
        loop = asyncio.get_running_loop()
        announced, at = directory.record(), loop.time()
        moved = asyncio.create_task(self._moved.wait())
        try:
            while not moved.done():
                seen = directory.own_bell.count
                wait = due_in(announced, directory.record(), loop.time() - at)
                if wait > 0:
                    changed = asyncio.create_task(directory.own_bell.wait(seen, wait))
                    await asyncio.wait((moved, changed), return_when=asyncio.FIRST_COMPLETED)
                    changed.cancel()
                    await asyncio.gather(changed, return_exceptions=True)
                    continue
                announced, at = directory.record(), loop.time()
                if self._station is not None:
                    await self._station.async_update_service(self._describe())
                await asyncio.wait((moved,), timeout=GAP)
        finally:
            moved.cancel()
            await asyncio.gather(moved, return_exceptions=True)

    async def _shut(self, *, goodbye: bool) -> None:
        """Close the sockets, with or without telling the LAN that this node leaves; never raises."""
        station, self._station = self._station, None
        browser, self._browser = self._browser, None
        if station is None:
            return
        try:
            async with asyncio.timeout(GOODBYE):
                if browser is not None:
                    await browser.async_cancel()
                if not goodbye:
                    station.zeroconf.registry.async_remove(station.zeroconf.registry.async_get_service_infos())
                await station.async_close()
        except Exception as error:
            self._directory.log.debug("mDNS did not close well", extra={"error": str(error)})

    async def _pause(self) -> None:
        """Wait to try again; a change of interfaces ends the wait."""
        try:
            async with asyncio.timeout(self._backoff.next()):
                await self._moved.wait()
        except TimeoutError:
            self._moved.set()

    def _describe(self) -> AsyncServiceInfo:
        from zeroconf.asyncio import AsyncServiceInfo

        record = self._directory.record()
        # Each string of a TXT record holds at most 255 bytes, and a node name may have 253. Lists have no place here: the
        # library divides many records into packets of 1,500 bytes, but not one record.
        properties = {
            "v": "1",
            "n": record.node_name,
            "c": self._cluster,
            "i": record.instance_id,
            "r": str(record.revision),
            "tp": str(record.tunnel_port),
            "rp": str(record.relay_port),
        }
        return AsyncServiceInfo(
            TYPE,
            self._name,
            port=record.discovery_port,
            properties=properties,
            server=self._server,
            parsed_addresses=list(announced(self.interfaces)),
        )

    # The others

    def _heard(self, zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        """The browser's callback, in the loop."""
        if name.lower() == self._name.lower():
            return
        if state_change.name == "Removed":
            self._leave(name)
            return
        if name in self._followers:
            self._news[name].set()
        elif len(self._followers) < MAX_NEIGHBOURS:
            self._start(name)
        elif len(self._missed) < MAX_NEIGHBOURS:
            self._missed[name] = None

    def _start(self, name: str) -> None:
        news = self._news[name] = asyncio.Event()
        self._followers[name] = asyncio.create_task(self._follow(name, news), name=f"mdns {name}")

    async def _follow(self, name: str, news: asyncio.Event) -> None:
        """Keeps the record of one neighbour fresh while it is announced."""
        backoff = Backoff(0.5, 30.0, self._rng)
        silent = 0
        while silent < MAX_SILENT:
            news.clear()
            wait = backoff.next()
            try:
                announcement = await self._details(name)
                silent = silent + 1 if announcement is None else 0
                if announcement is not None and announcement.cluster != self._cluster:
                    self._strangers.add(name)
                    wait = LIFETIME
                elif announcement is not None and await self._fetch(name, announcement):
                    backoff.reset()
                    wait = LIFETIME / 2
            except Exception as error:
                # Anybody in the LAN can announce anything; what it brings about concerns this announcement only.
                self._directory.log.warning("announcement not followed", extra={"peer": name, "error": str(error)})
            self._show()
            # Not wait_for: up to Python 3.11 it loses a cancellation that comes together with the news.
            try:
                async with asyncio.timeout(wait):
                    await news.wait()
            except TimeoutError:
                pass
        # Not even its addresses are announced any more: it went without a goodbye.
        self._leave(name)

    async def _details(self, name: str) -> Announcement | None:
        from zeroconf.asyncio import AsyncServiceInfo

        station = self._station
        if station is None:
            return None
        info = AsyncServiceInfo(TYPE, name)
        try:
            if not await info.async_request(station.zeroconf, ASK_MS) or not info.port:
                return None
        except Exception as error:
            # The station was closed meanwhile, or what came is no announcement.
            self._directory.log.debug("no details of an announcement", extra={"error": str(error)})
            return None
        text = {key: value or "" for key, value in info.decoded_properties.items()}
        # A neighbour announces all its addresses everywhere; those on a common network are the ones to try first.
        # Link-local ones come with the number of the interface on which they were heard.
        ips = sorted(dict.fromkeys(info.parsed_scoped_addresses()), key=self._near, reverse=True)
        revision = text.get("r", "")
        return Announcement(
            cluster=text.get("c", ""),
            instance=text.get("i", ""),
            node_name=text.get("n", ""),
            revision=int(revision) if revision.isascii() and revision.isdigit() else 0,
            endpoints=tuple(Endpoint(ip, info.port) for ip in ips)[:MAX_ENDPOINTS],
        )

    def _near(self, ip: str) -> bool:
        return any(interface.near(ip) for interface in self.interfaces)

    async def _fetch(self, name: str, found: Announcement) -> bool:
        """Get the record that was announced; False when it should be tried again."""
        directory = self._directory
        if not found.node_name or not found.endpoints:
            return False
        own = found.node_name == directory.settings.node_name
        mine = announced(self.interfaces)
        if own and all(endpoint.host.partition("%")[0] in mine for endpoint in found.endpoints):
            return True  # this node's former run
        known = directory.registry.entry(found.node_name)
        if (
            known is not None
            and known.record is not None
            and Source.MDNS in known.claims
            and known.record.revision >= found.revision
            and known.record.issued_at + LIFETIME / 2 > directory.wall()
        ):
            return True
        try:
            contact = Contact(found.node_name, found.endpoints)
            signed, answered = await self._client.ping(contact, timeout=TIMEOUT)
            # Of what was announced only this is known to be more than a memory of the LAN's caches.
            record = directory.take(signed, Source.MDNS, expected=found.node_name, seen=(answered.host,))
        except (Unreachable, Refused, DiscoveryError) as error:
            if self._problems.get(name) != str(error):
                self._problems[name] = str(error)
                directory.log.warning(
                    "neighbour not usable", extra={"peer": found.node_name, "source": "mdns", "error": str(error)}
                )
            return False
        self._problems.pop(name, None)
        if own and record.instance_id == found.instance:
            directory.meet_double(record, f"in the LAN at {found.endpoints[0]}")
        elif not own and name not in self._named:
            self._named[name] = found.node_name
            directory.log.info("neighbour found", extra={"peer": found.node_name, "source": "mdns"})
        return True

    def _leave(self, name: str) -> None:
        """An announcement is gone; one that found no room gets its place."""
        self._missed.pop(name, None)
        follower = self._followers.pop(name, None)
        if follower is not None and follower is not asyncio.current_task():
            follower.cancel()
        self._news.pop(name, None)
        self._strangers.discard(name)
        self._problems.pop(name, None)
        node_name = self._named.pop(name, "")
        if node_name and node_name not in self._named.values():
            self._directory.registry.withdraw(node_name, Source.MDNS)
            self._directory.log.info("neighbour left", extra={"peer": node_name, "source": "mdns"})
        if self._missed and len(self._followers) < MAX_NEIGHBOURS and self._station is not None:
            self._start(self._missed.popitem()[0])
        self._show()

    def _show(self) -> None:
        if self._station is None:
            return
        count = len(self.interfaces)
        text = f"{count} interface{'' if count == 1 else 's'}, {len(set(self._named.values()))} neighbours"
        if self._strangers:
            text += f", {len(self._strangers)} of other clusters"
        if self._problems:
            text += "; " + "; ".join(sorted(self._problems.values())[:5])
        self._directory.board.say("mdns", text)


def announced(interfaces: tuple[Interface, ...]) -> tuple[str, ...]:
    """The addresses of an announcement: one of each interface before the second of any, and no more than are tried."""
    first = [(interface.ips or interface.link_local)[0] for interface in interfaces]
    every = [*addresses(interfaces), *(ip for interface in interfaces for ip in interface.link_local)]
    return tuple(dict.fromkeys([*first, *every]))[:MAX_ENDPOINTS]
